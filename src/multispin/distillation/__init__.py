"""Drafters made from a target: text that it writes, a student of a few of its layers, training, acceptance."""

from multispin.distillation.distil import Order, Progress, distil, spread_layers
from multispin.distillation.training import Recipe

__all__ = ["Order", "Progress", "Recipe", "distil", "spread_layers"]
