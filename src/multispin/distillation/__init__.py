"""Drafters made from a target: text that it writes, a student of a few of its layers, training, acceptance."""

from multispin.distillation.distil import Order, StageProgress, distil, spread_layers
from multispin.distillation.training import Recipe

__all__ = ["Order", "Recipe", "StageProgress", "distil", "spread_layers"]
