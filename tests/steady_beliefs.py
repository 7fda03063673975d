"""Beliefs of an edge whose engine, drafter and devices take the same time on any machine, however busy.

What such an edge decides follows from what is accepted alone: a test that needs drafts over real sockets gets them.
"""

from concurrent.futures import Executor, Future

from multispin.passes import LearnedBeliefs

STEP_S = 0.0005
"""Time that the edge's own drafter is said to take for a step [s]."""
TOKEN_S = 0.001
"""Time that a device is said to take for a token [s]."""
EFFICIENCY = 5.0
"""Spectral efficiency that a device's link is said to have [bit/s/Hz]."""


class SteadyBeliefs(LearnedBeliefs):
    """Learns as an edge does, but hears of the same times whatever was measured.

    Args:
        settings: the controller's settings.
        pass_s: time that a pass is said to take [s].

    """

    def __init__(self, settings, pass_s):
        super().__init__(
            settings.bits_per_id, settings.max_draft_length, settings.frame_bits, delays=settings.mode != "rounds"
        )
        self._pass_s = pass_s

    def observe_draft(self, session, length, draft_s, frame_bits, bandwidth_hz, upload_s):
        upload_s = frame_bits / (EFFICIENCY * bandwidth_hz) if bandwidth_hz else 0.0
        super().observe_draft(session, length, length * TOKEN_S, frame_bits, bandwidth_hz, upload_s)

    def observe_verification(self, devices, tokens, seconds):
        super().observe_verification(devices, tokens, self._pass_s)

    def observe_edge_draft(self, lengths, seconds):
        super().observe_edge_draft(lengths, STEP_S * max(lengths, default=0))


class AtOnce(Executor):
    """Makes a plan when it is asked for, not when a busy machine comes to it."""

    def submit(self, work):
        future = Future()
        future.set_result(work())
        return future
