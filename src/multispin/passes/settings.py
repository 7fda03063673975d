"""The operator's settings for planning."""

from dataclasses import dataclass

from multispin.checks import not_negative, one_of, positive
from multispin.control import RUNTIME_POLICIES
from multispin.control.who import ROUND_MODES
from multispin.errors import InputError

MODES = (*ROUND_MODES, "streams", "auto")
"""Modes of an edge: nobody drafts; only the edge's drafter does; devices draft in rounds, as the policy plans; each
session gets the best of these three; devices draft on while they are verified; or whatever pays. In the last one a
session gets one token, the edge's drafts or its device's, by the prices of streams."""


@dataclass(frozen=True)
class ControllerSettings:
    """The operator's settings.

    Attributes:
        policy: one of `RUNTIME_POLICIES`.
        bandwidth_hz: uplink band that all devices share [Hz].
        bits_per_id: bits of one drafted id on the air.
        max_draft_length: longest draft that may be granted [tokens]; default 16.
        replan_tolerance: greatest drift of beliefs for which a plan's draft lengths are kept (`Controller.plan`); 0
            plans again after any change; default 0.02.
        frame_bits: frame overhead per draft [bit], assumed until a device's own is measured; default 0. With ids only
            it is most of a frame, and too small a value gives a device too little band for its first draft.
        multiple_access: "fdma" (default), each device has a share of the band; or "tdma", they send in turns.
        mode: "rounds" (default), devices draft as the policy says; "plain", nobody drafts; "edge", only the edge's own
            drafter does; "mixture", for each session the best of these; "streams", devices draft on while they are
            verified; "auto", whatever pays, by the prices of streams.
        edge_drafts: whether the edge has a drafter of its own; default no.

    """

    policy: str
    bandwidth_hz: float
    bits_per_id: int
    max_draft_length: int = 16
    replan_tolerance: float = 0.02
    frame_bits: float = 0.0
    multiple_access: str = "fdma"
    mode: str = "rounds"
    edge_drafts: bool = False

    def __post_init__(self) -> None:
        one_of("mode", self.mode, MODES)
        if self.mode == "edge" and not self.edge_drafts:
            raise InputError("mode = 'edge' needs a drafter of the edge's own: give one, or choose another mode")
        if self.mode in ("mixture", "streams", "auto") and self.multiple_access == "tdma":
            raise InputError(
                f"mode = '{self.mode}' does not go with multiple_access = 'tdma': use 'fdma' or mode = 'rounds'"
            )
        one_of("policy", self.policy, RUNTIME_POLICIES)
        positive("bandwidth_hz", self.bandwidth_hz)
        not_negative("replan_tolerance", self.replan_tolerance)
        not_negative("frame_bits", self.frame_bits)

    @property
    def streams(self) -> bool:
        """Whether devices may draft on while they are verified."""
        return self.mode in ("streams", "auto")

    @property
    def in_turns(self) -> bool:
        """Whether devices send one after the other, each over the whole band."""
        return self.multiple_access == "tdma"
