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
OTHER_SCHEMES: Mapping[str, str] = {"fair": "Fair (Σ log)", "goodput-argmax": "Goodput argmax"}
"""Policies that the paper does not have."""
TITLES: Mapping[str, str] = {**PAPER_SCHEMES, **OTHER_SCHEMES}
"""All of them."""
