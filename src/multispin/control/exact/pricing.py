"""The search's interface to a way of sharing the uplink: bounds, good choices, and their costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from multispin.control.exact.objective import Objective
from multispin.control.exact.relaxation import Intervals, Relaxation, greedy, relax
from multispin.control.exact.tdma import greedy_tdma, relax_tdma
from multispin.control.goodput import Floats, Ints, Mask
from multispin.control.problem import Problem


@dataclass(frozen=True)
class Pricing:
    """How the uplink is priced.

    Args:
        relax: the priced problem over intervals of the drafting time, see `relaxation.relax`.
        greedy: choices that fill the uplink well at single drafting times, see `relaxation.greedy`.
        climbs: grids of drafting times for good first choices: how far around the best so far, as a factor, and how
            many points.
        effort: how long an interval takes besides its table [table entries].
        improves: whether first choices are worth improving device by device, as bounds are dear.
    """

    relax: Callable[[Problem, Objective, float, Intervals, Ints, Mask | None], Relaxation]
    greedy: Callable[[Problem, Objective, float, Intervals, Ints], tuple[Ints, Floats]]
    climbs: tuple[tuple[float, int], ...]
    effort: float = 0.0
    improves: bool = False


PRICING: Mapping[str, Pricing] = MappingProxyType(
    {
        # One price for the band.
        "fdma": Pricing(relax, greedy, ((float("inf"), 14), (1.2, 8))),
        # A price for each moment, from a linear program.
        "tdma": Pricing(relax_tdma, greedy_tdma, ((float("inf"), 6), (1.1, 4)), effort=2e6, improves=True),
    }
)
"""By the name of the access."""
