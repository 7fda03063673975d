"""Multi-SPIN: many devices draft tokens, one edge server verifies them, a controller shares the uplink.

The rooms of this package, lowest first: `control` (what should every device do?), `radio` (how many bit/s?),
`speculation` (what may be accepted?), `models` (the language models), `estimation` (what have we learned?),
`distillation` (how is a drafter made?), `profiling` (how fast and how good is it here?), `protocol` (what is said?),
`passes` (the loop), `edge` and `device` (who says it), `simulation`, `paper`, `report`, `demo`, `cli`.
"""

__version__ = "0.1.0"
