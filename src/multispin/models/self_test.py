"""The self-test of a packed model: logits of short texts from its own attention, computed before it is packed.

It is cheap enough to run at every start. It finds what no list of features can foresee: attention that does something
which a packed row leaves out, or that a new version of transformers computes differently.
"""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from multispin.models.families import longest_text

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.2}
"""Largest error of the self-test, as a share of the logits' spread."""
TEST_LENGTHS = (13, 6)


def test_texts(config: Any) -> list[list[int]]:
    """Texts of the self-test, within what the model knows."""
    longest, size = longest_text(config) or max(TEST_LENGTHS), int(config.vocab_size)
    return [[(37 * index + 11 * length) % size for index in range(min(length, longest))] for length in TEST_LENGTHS]


@torch.inference_mode()
def own_logits(model: PreTrainedModel) -> list[torch.Tensor]:
    """[n, width] logits of each text of the self-test by the model's own attention, one text at a time."""
    texts = [torch.tensor([text], device=model.device) for text in test_texts(model.config.get_text_config())]
    return [model(input_ids=text, use_cache=False).logits[0] for text in texts]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the differences over the spread, of the worst row, counting only expected finite numbers.

    It is infinite where anything found is no number.
    """
    if bool(found.isnan().any()):  # max(0, nan) would be 0
        return math.inf
    worst = 0.0
    for row, right in zip(found, expected, strict=True):
        known = right.isfinite()
        if int(known.sum()) > 1:
            spread = float(right[known].std()) or 1.0
            worst = max(worst, float((row[known] - right[known]).square().mean().sqrt()) / spread)
    return worst
