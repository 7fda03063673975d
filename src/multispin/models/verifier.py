"""The verifier: a cached model that applies each request's acceptance rule to what it computes."""

from collections.abc import Sequence
from typing import Any

import torch

from multispin.errors import InputError
from multispin.models.batch_drawing import BatchDrawing, drawn_on_cpu, read_back
from multispin.models.cached import CachedModel, wanted
from multispin.models.loading import load_model
from multispin.models.packable import PackedModel
from multispin.models.references import USUAL_MAX_LENGTH
from multispin.models.static import PassResult
from multispin.models.tokenizer import load_tokenizer
from multispin.speculation import Failure, Feed, Finding, Judged, Rule, SamplingParams, accept_matching, judge_together

_GREEDY = SamplingParams()


class Verifier(CachedModel):
    """The embedded `Engine`; arguments as `CachedModel`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._drawing = BatchDrawing(self.packed.device)

    def warm_up(self) -> None:
        """On a GPU, compile the drawing of tokens, so that no pass waits for it; elsewhere do nothing."""
        if self.packed.device.type == "cuda":
            self._drawing.compile(self.vocabulary_size, self.packed.width, self.packed.dtype)

    @property
    def rules(self) -> frozenset[Rule]:
        """All rules."""
        return frozenset(Rule)

    @torch.inference_mode()
    def verify(self, feeds: Sequence[Feed]) -> list[Finding | Failure | None]:
        """Run all feeds in one forward pass and apply each request's acceptance rule.

        A feed with a logit that is not finite gets a Failure and is forgotten; the others are verified.
        """
        if not feeds:
            return []
        found = self._pass(feeds)
        if isinstance(found, PassResult):
            return self._verify_at_once(feeds, found)
        flat = found
        failed = self._failed(feeds, flat)
        findings: list[Finding | Failure | None] = []
        row = 0
        for index, feed in enumerate(feeds):
            last = row + wanted(feed)
            if index in failed:
                findings.append(self._forget(feed))
            elif feed.params is None:
                findings.append(None)
            else:
                findings += _judged([(feed, flat[row:last])])
            row = last
        return findings

    def _verify_at_once(self, feeds: Sequence[Feed], found: PassResult) -> list[Finding | Failure | None]:
        """Apply the rules to a pass of static shape: all rows drawn at once, and one copy back."""
        order = sorted(range(len(feeds)), key=lambda index: feeds[index].params is None)  # the order of the rows
        asked: list[tuple[SamplingParams, int]] = []
        for feed in (feeds[index] for index in order):
            if feed.params is not None:
                plain = feed.params if _drawn_at_once(feed) else _GREEDY
                asked += [(_GREEDY, 0)] * feed.context
                asked.extend((plain, feed.newest + 1 + row) for row in range(wanted(feed)))
        parts = [found.best, torch.zeros_like(found.best)]
        if any(not params.greedy or params.logit_bias or params.withheld for params, _ in asked):
            asked += [(_GREEDY, 0)] * (len(found.logits) - len(asked))  # chunks of prompts, and padding
            parts = list(self._drawing(found.logits, asked))
        tokens, doubtful, finite = read_back((*parts, found.finite))
        findings: list[Finding | Failure | None] = [None] * len(feeds)
        others: dict[int, torch.Tensor] = {}  # those that ask for more than a draw, and their logits
        row = 0
        for index in order:
            feed, rows = feeds[index], slice(row, row + len(feeds[index].tokens))
            row = rows.stop
            if not all(finite[rows]):
                findings[index] = self._forget(feed)
            elif feed.params is None:
                continue
            elif _drawn_at_once(feed):
                emitted = [
                    drawn_on_cpu(found.logits[at], asked[at]) if doubtful[at] else tokens[at]
                    for at in range(rows.start + feed.context, rows.stop)
                ]
                findings[index] = accept_matching(feed.draft, emitted)
            else:
                others[index] = found.logits[rows.start + feed.context : rows.stop]
        judged = _judged([(feeds[index], logits) for index, logits in others.items()])
        for index, finding in zip(others, judged, strict=True):
            findings[index] = finding
        return findings

    def _failed(self, feeds: Sequence[Feed], flat: torch.Tensor) -> set[int]:
        """Indices of the feeds of which something is not a finite number."""
        failed: set[int] = set()
        # The tokens of a prompt have no logits, so the last layer's cache is checked.
        for index, feed in enumerate(feeds):
            end = feed.start + len(feed.tokens) - wanted(feed)
            if end > feed.start and not self._cache.is_finite(feed.slot, feed.start, end):
                failed.add(index)
        finite = flat.amax(-1).isfinite()  # any NaN makes the largest of its row NaN
        if bool(finite.all()):
            return failed
        asking = [index for index, feed in enumerate(feeds) if feed.params is not None]
        sizes = [wanted(feeds[index]) for index in asking]
        return failed | {
            index for index, rows in zip(asking, torch.split(finite, sizes), strict=True) if not rows.all()
        }

    def _forget(self, feed: Feed) -> Failure:
        # NaN times a weight of zero is NaN, so none may stay where others' sums are made.
        self._cache.clear(feed.slot, 0)
        super().commit(feed.slot, 0)
        return Failure(
            f"the model's logits are not finite numbers for this text: its weights are damaged, or {self.packed.dtype} "
            "is too narrow for it (try float32)"
        )


def _drawn_at_once(feed: Feed) -> bool:
    if feed.params is None or feed.evidence is not None or feed.masks is not None:
        return False
    return BatchDrawing.takes(feed.params)


def load_verifier(
    reference: str,
    slots: int,
    max_length: int | None = None,
    dtype: str = "float32",
    place: str = "cpu",
    batch_invariant: bool = False,
) -> Verifier:
    """The verifier of a target, over the ids that its tokenizer has.

    Args:
        reference: reference of the target.
        slots: most sessions at once.
        max_length: most tokens of a session, prompt included; default 1024, or the model's context if shorter.
        dtype: number type that it computes in; default float32.
        place: torch's device; default cpu.
        batch_invariant: whether texts are independent of who shares their passes (see `CachedModel`); default False.

    """
    size = load_tokenizer(reference).size
    model = PackedModel.of(load_model(reference, dtype, place), own=True)
    length = min(USUAL_MAX_LENGTH, model.longest_text or USUAL_MAX_LENGTH) if max_length is None else max_length
    vocabulary_size = min(size, model.width)
    verifier = Verifier(model, slots, length, vocabulary_size=vocabulary_size, batch_invariant=batch_invariant)
    verifier.warm_up()
    return verifier


def _judged(asked: Sequence[tuple[Feed, torch.Tensor]]) -> list[Finding | Failure]:
    """The outcome of each request's rule; a Failure where the request's own values make that impossible."""
    drafts = []
    for feed, logits in asked:
        assert feed.params is not None
        drafts.append(Judged(feed.draft, feed.evidence, logits, feed.newest + 1, feed.params, feed.text, feed.masks))
    return [
        Failure(str(finding), of_request=True) if isinstance(finding, InputError) else finding
        for finding in judge_together(drafts)
    ]
