"""Multi-SPIN: many devices draft tokens, one edge server verifies them, a controller shares the uplink.

The names of `__all__` are the front door: each is loaded when it is first used, so that `import multispin` is quick.
`multispin.advise("paper-llama")` says who should draft at a site, `multispin.plan` plans one round of it,
`multispin.simulate` lets it run under a virtual clock, `multispin.run_edge` serves devices, `multispin.generate` is
a device, and `examples/one_pass.py` drafts, verifies and commits pass by pass.

The rooms of this package, lowest first: `errors` and `checks` (what is bad input?), `lazily` (names that are loaded
when they are first used), `outside` (text from outside),
`data` (prompts and scenarios), `radio` (how many bit/s?), `control` (what should every device do?), `speculation`
(what may be accepted?), `estimation` (what have we learned?), `models` (the language models), `protocol` (what is
said?), `passes` (the loop), `edge` and `device` (who says it), `gateway` (any OpenAI client), `web` (pages),
`profiling` (how fast and how good is it here?), `distillation` (how is a drafter made?), `simulation`, `paper`,
`report`, `demo`, `api` (the front door), `cli`.
"""

from typing import TYPE_CHECKING

from multispin.lazily import lazily

if TYPE_CHECKING:
    from multispin.api import (
        Generated,
        advise,
        generate,
        load_scenario,
        plan,
        run_edge,
        simulate,
    )
    from multispin.control import Plan, Scenario
    from multispin.errors import InputError
    from multispin.models import Verifier, load_drafter, load_model, load_tokenizer
    from multispin.speculation import Drafter, Engine, NoDrafter, PromptLookupDrafter, Rule, SamplingParams
    from multispin.speculation.by_hand import Text, one_pass, open_text

__all__ = [
    "Drafter",
    "Engine",
    "Generated",
    "InputError",
    "NoDrafter",
    "Plan",
    "PromptLookupDrafter",
    "Rule",
    "SamplingParams",
    "Scenario",
    "Text",
    "Verifier",
    "__version__",
    "advise",
    "generate",
    "load_drafter",
    "load_model",
    "load_scenario",
    "load_tokenizer",
    "one_pass",
    "open_text",
    "plan",
    "run_edge",
    "simulate",
]
__version__ = "0.1.0"

__getattr__ = lazily(
    __name__,
    {
        "api": (
            "Generated",
            "advise",
            "generate",
            "load_scenario",
            "plan",
            "run_edge",
            "simulate",
        ),
        "control": ("Plan", "Scenario"),
        "errors": ("InputError",),
        "models": ("Verifier", "load_drafter", "load_model", "load_tokenizer"),
        "speculation": ("Drafter", "Engine", "NoDrafter", "PromptLookupDrafter", "Rule", "SamplingParams"),
        "speculation.by_hand": ("Text", "one_pass", "open_text"),
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
