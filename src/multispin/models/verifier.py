"""The verifier: a cached model that applies each request's acceptance rule to what it computes."""

from collections.abc import Sequence

import torch

from multispin.errors import InputError
from multispin.models.cached import CachedModel
from multispin.models.loading import load_model
from multispin.models.packable import PackedModel
from multispin.models.references import USUAL_MAX_LENGTH
from multispin.models.tokenizer import load_tokenizer
from multispin.speculation import Failure, Feed, Finding, Rule, judge


class Verifier(CachedModel):
    """The embedded `Engine`."""

    @property
    def rules(self) -> frozenset[Rule]:
        """All of them."""
        return frozenset(Rule)

    @torch.inference_mode()
    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Run all feeds in one forward pass and apply each request's acceptance rule.

        A feed with a logit that is not a finite number gets a Failure and is forgotten; the others are verified.
        """
        flat = self._run(feeds)
        failed = self._failed(feeds, flat)
        findings: list[Finding | Failure | None] = []
        row = 0
        for index, feed in enumerate(feeds):
            last = row + (len(feed.tokens) if feed.params is not None else 0)
            if index in failed:
                findings.append(self._forget(feed))
            elif feed.params is None:
                findings.append(None)
            else:
                findings.append(_judged(feed, flat[row:last]))
            row = last
        return findings

    def _failed(self, feeds: Sequence[Feed], flat: torch.Tensor) -> set[int]:
        """Indices of the feeds of which something is not a finite number."""
        failed: set[int] = set()
        # A chunk of a prompt has no logits: what it leaves in the last layer's cache tells.
        for index, feed in enumerate(feeds):
            if feed.params is None and not self._cache.is_finite(feed.slot, feed.start, feed.start + len(feed.tokens)):
                failed.add(index)
        finite = flat.amax(-1).isfinite()  # any NaN makes the largest of its row NaN
        if bool(finite.all()):
            return failed
        asking = [index for index, feed in enumerate(feeds) if feed.params is not None]
        sizes = [len(feeds[index].tokens) for index in asking]
        return failed | {
            index for index, rows in zip(asking, torch.split(finite, sizes), strict=True) if not rows.all()
        }

    def _forget(self, feed: Feed) -> Failure:
        # Not a number, times a weight of zero, is not a number: nothing of it may stay where others' sums are made.
        self._cache.clear(feed.slot, 0)
        super().commit(feed.slot, 0)
        return Failure(
            f"the model's logits are not finite numbers for this text: its weights are damaged, or {self.packed.dtype} "
            "is too narrow for it (try float32)"
        )


def load_verifier(
    reference: str, slots: int, max_length: int | None = None, dtype: str = "float32", place: str = "cpu"
) -> Verifier:
    """The verifier of a target, over the ids that its tokenizer has.

    Args:
        reference: of the target.
        slots: sessions that fit at once.
        max_length: prompt and generated tokens per session; by default 1024, or less if the model knows less.
        dtype: numbers that it computes in.
        place: device of torch's.

    """
    size = load_tokenizer(reference).size
    model = PackedModel.of(load_model(reference, dtype, place), own=True)
    length = min(USUAL_MAX_LENGTH, model.longest_text or USUAL_MAX_LENGTH) if max_length is None else max_length
    return Verifier(model, slots, length, vocabulary_size=min(size, model.width))


def _judged(feed: Feed, logits: torch.Tensor) -> Finding | Failure:
    """What the request's rule finds; a Failure where its own values make that impossible."""
    assert feed.params is not None
    try:
        return judge(feed.tokens[1:], feed.evidence, logits, feed.start + 1, feed.params, feed.text)
    except InputError as error:
        return Failure(str(error))
