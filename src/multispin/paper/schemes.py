"""The schemes that the figures compare, in the figures' order, with the names that they have there."""

from collections.abc import Mapping

PAPER_SCHEMES: Mapping[str, str] = {
    "heterogeneous": "Hete, exact",
    "algorithm1": "Hete, Algorithm 1",
    "uniform-bandwidth": "Uni-BW",
    "homogeneous": "Homo",
    "fixed": "Fixed BW&L",
    "centralized": "Cen-SPIN",
    "p2p": "P2P-SPIN",
}
"""The paper's schemes: the planner's policy, and its title."""
EDGE_ALONE: Mapping[str, str] = {"plain": "Plain decoding", "edge-drafts": "Edge drafts"}
"""Schemes of the edge without the devices, which the paper does not compare with. Either nobody drafts and every
session gets one token per pass, or a drafter on the edge drafts for the whole batch. Keys are modes of `decide`."""
COMPARED: Mapping[str, str] = {**PAPER_SCHEMES, **EDGE_ALONE}
"""The schemes of figures 6 to 8."""
OTHER_SCHEMES: Mapping[str, str] = {"fair": "Fair (Σ log)", "goodput-argmax": "Goodput argmax"}
"""Further policies that the paper does not have."""
TITLES: Mapping[str, str] = {**COMPARED, **OTHER_SCHEMES}
"""All of them."""
