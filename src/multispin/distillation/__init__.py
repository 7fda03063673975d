"""Makes a drafter from a target: the target writes a corpus, and a few of its layers learn to predict it."""

from multispin.distillation.distil import DistilOrder, StageProgress, distil, spread_layers
from multispin.distillation.training import Recipe

__all__ = ["DistilOrder", "Recipe", "StageProgress", "distil", "spread_layers"]
