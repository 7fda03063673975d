"""Tests of the promises of every drafter and engine, as functions that try one: this package's own or yours.

Call them in a test of your class. A breach raises AssertionError with one sentence. They need no test library.

    check_drafter(lambda: MyDrafter(...), [[1, 2, 3, 4], [1, 2, 9]], vocabulary_size=50_000)
    check_engine(MyEngine(...))
"""

import math
from collections.abc import Callable, Sequence

from multispin.speculation.distributions import DistributionFormat, certain_distribution
from multispin.speculation.drafter import Drafter
from multispin.speculation.engine import Engine, Failure, Feed, SlotsTakenError
from multispin.speculation.evidence import ID_RULES, Evidence, Finding
from multispin.speculation.rule import Rule
from multispin.speculation.rules import Outcome
from multispin.speculation.sampling import SamplingParams

DRAFT_TOKENS = 5
TEXT_TOKENS = 7
CHECKED_PROMPT_TOKENS = 9
CHECKED_DRAFTS = 120
"""Drafts by which a drafter's distributions are held against what it draws."""
MOST_DEVIATIONS = 5.0
"""They may differ by this many standard deviations: chance does more than that once in two million times."""

_GREEDY = SamplingParams()
_DRAWN = (SamplingParams(0.8, seed=3), SamplingParams(1.0, top_k=20, top_p=0.9, seed=4))


def check_drafter(
    make: Callable[[], Drafter],
    texts: Sequence[Sequence[int]],
    vocabulary_size: int,
    seeds: int = CHECKED_DRAFTS,
    *,
    distributions: bool = True,
) -> None:
    """AssertionError unless a drafter keeps what `Drafter` promises.

    It must be a function of text, length and parameters: what it was asked before, or that it read the text ahead,
    changes nothing. Its distributions must be those that it draws from: else the text would not be the target's.

    Args:
        make: function that makes a new drafter, with room for the longest text and a few drafted tokens.
        texts: committed texts, at least two, each of two tokens or more.
        vocabulary_size: number of ids of the target.
        seeds: number of drafts by which distributions are tried; default `CHECKED_DRAFTS`.
        distributions: whether the drafter serves the rejection rules too; default yes.

    """
    _must(len(texts) > 1 and all(len(text) > 1 for text in texts), "the check needs two texts of two tokens or more")
    for params in (_GREEDY, *_DRAWN):
        _check_drafts(make, texts, vocabulary_size, params)
    if not distributions:
        return
    form = DistributionFormat(vocabulary_size, min(1024, vocabulary_size))
    for params in _DRAWN:
        _check_distributions(make, texts, params, form)
    _check_draws(make(), texts[0], form, seeds)


def _check_drafts(
    make: Callable[[], Drafter], texts: Sequence[Sequence[int]], vocabulary_size: int, params: SamplingParams
) -> None:
    used = make()
    for text in texts:
        given = list(text)
        drafted = make().draft(given, DRAFT_TOKENS, params)
        _must(given == list(text), "a draft changed the committed text that it was given")
        _must(len(drafted) <= DRAFT_TOKENS, f"{len(drafted)} tokens were drafted where {DRAFT_TOKENS} were asked for")
        _must(all(0 <= token < vocabulary_size for token in drafted), "a draft holds an id outside the vocabulary")
        _must(used.draft(tuple(text), DRAFT_TOKENS, params) == drafted, "a draft depends on what was drafted before")
        _must(used.draft(given, 2, params) == drafted[:2], "a shorter draft is not the beginning of a longer one")
        _must(used.draft(given, 0, params) == [], "a draft of length 0 has tokens")
        for kept in range(len(drafted) + 1):  # the edge accepted some of the draft, and wrote a token of its own
            went_on = [*given, *drafted[:kept], (given[-1] + 1) % vocabulary_size]
            _must(
                used.draft(went_on, 2, params) == make().draft(went_on, 2, params),
                "after a partly accepted draft other tokens are drafted than a new drafter drafts for the same text",
            )
            used.draft([*given, *drafted], 2, params)
        ready = make()
        ready.prepare(given)
        _must(ready.draft(given, DRAFT_TOKENS, params) == drafted, "a draft depends on whether the text was prepared")


def _check_distributions(
    make: Callable[[], Drafter], texts: Sequence[Sequence[int]], params: SamplingParams, form: DistributionFormat
) -> None:
    used = make()
    for text in texts:
        drafted, distributions = make().draft_distributions(text, DRAFT_TOKENS, params, form)
        _must(
            len(distributions) == len(drafted) <= DRAFT_TOKENS,
            f"a draft of {len(drafted)} tokens came with {len(distributions)} distributions",
        )
        for token, distribution in zip(drafted, distributions, strict=True):
            _must(distribution.form == form, f"a distribution has the format {distribution.form}; it must be {form}")
            _must(distribution.weight(token) > 0, "the distribution of a drafted token does not hold that token")
        used.draft(text, 3, params)
        again, _ = used.draft_distributions(text, DRAFT_TOKENS, params, form)
        _must(again == drafted, "a draft depends on what was drafted before")


def _check_draws(drafter: Drafter, text: Sequence[int], form: DistributionFormat, seeds: int) -> None:
    """Hold how often the most probable token is drawn against its probability, over many seeds."""
    surplus, variance = 0.0, 0.0
    for seed in range(seeds):
        drafted, distributions = drafter.draft_distributions(text, 2, SamplingParams(1.0, seed=seed), form)
        for token, distribution in zip(drafted, distributions, strict=True):
            top = int(distribution.weights.argmax())
            probability = float(distribution.weights[top] / form.total)
            surplus += (token == int(distribution.ids[top])) - probability
            variance += probability * (1.0 - probability)
    _must(
        abs(surplus) <= MOST_DEVIATIONS * math.sqrt(variance) + 1e-9,
        "tokens are not drawn from the distributions that are sent for them: the text would not be the target's",
    )


def check_engine(engine: Engine) -> None:
    """AssertionError unless an engine keeps what `Engine` promises.

    Under `greedy` and `coupled` a text must not depend on drafts, on how its prompt was cut, or on who else is in the
    batch.

    Args:
        engine: engine with no slot taken, 2 slots or more, and 32 positions or more. All slots are free again
            at the end.

    """
    _must(engine.slots >= 2, "the check needs an engine of 2 slots or more")
    _must(engine.max_length >= 32, "the check needs 32 positions or more")
    _must(bool(engine.rules) and engine.rules <= frozenset(Rule), "rules is not a set of one Rule or more")
    _must(engine.longest_chunk >= 1, "longest_chunk is below 1: no prompt would ever be read")
    _check_slots(engine)
    prompts = [
        [(step * place + 1) % engine.vocabulary_size for place in range(CHECKED_PROMPT_TOKENS)] for step in (1, 3)
    ]
    for rule, params in ((Rule.GREEDY, _GREEDY), *((Rule.COUPLED, drawn) for drawn in _DRAWN)):
        if rule in engine.rules:
            _check_texts(engine, prompts, params)
    for rule in sorted(engine.rules - ID_RULES, key=lambda rule: rule.value):
        _check_rejection(engine, prompts[0], rule)


def _check_slots(engine: Engine) -> None:
    slots = [engine.open() for _ in range(engine.slots)]
    _must(len(set(slots)) == engine.slots, "a slot was handed out twice")
    _must(all(engine.cached(slot) == 0 for slot in slots), "a new slot has something cached")
    _refuses(engine.open, SlotsTakenError, "more slots were handed out than there are")
    _refuses(lambda: engine.commit(slots[0], 1), ValueError, "positions were kept that were never cached")
    for slot in slots:
        engine.close(slot)
    _refuses(lambda: engine.close(slots[0]), ValueError, "a slot was given back twice")
    _refuses(lambda: engine.cached(slots[0]), ValueError, "a slot that is not open has positions")
    again = engine.open()
    _must(engine.cached(again) == 0, "a slot that was given back still has something cached")
    engine.close(again)


def _check_texts(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> None:
    texts = [_own_text(engine, prompt, params) for prompt in prompts]
    for prompt, own in zip(prompts, texts, strict=True):
        slot = _read(engine, prompt, cut=2)
        _must(engine.cached(slot) == len(prompt) - 1, "the positions of a prompt that was read are not cached")
        for length in (0, 1, DRAFT_TOKENS):
            found = _verify(engine, slot, prompt, own[:length], params)
            _must(found == Outcome(length, own[length]), f"a draft of {length} right tokens gave {found}")
            _must(engine.cached(slot) == len(prompt) + length, "the positions of a draft are not cached")
            engine.commit(slot, len(prompt) - 1)
        for right in range(DRAFT_TOKENS):
            wrong = (own[right] + 1) % engine.vocabulary_size
            found = _verify(engine, slot, prompt, [*own[:right], wrong, *own[right + 1 : DRAFT_TOKENS]], params)
            _must(found == Outcome(right, own[right]), f"a draft of {right} right tokens and a wrong one gave {found}")
            engine.commit(slot, len(prompt) + right)
            text = [*prompt, *own[: right + 1]]
            found = _verify(engine, slot, text, (), params)
            _must(found == Outcome(0, own[right + 1]), "a rejected draft changes the text after it")
            engine.commit(slot, len(prompt) - 1)
        engine.close(slot)
        if engine.joins:
            _check_joined(engine, prompt, own, params)
    _check_batch(engine, prompts, texts, params)


def _check_joined(engine: Engine, prompt: Sequence[int], own: Sequence[int], params: SamplingParams) -> None:
    """Drafts behind the end of a prompt, or behind all of it, in one feed."""
    for cut in (0, 2, len(prompt) - 2):
        slot = _read(engine, prompt[: cut + 1])
        draft = [*own[:2], (own[2] + 1) % engine.vocabulary_size]
        feed = Feed(slot, cut, [*prompt[cut:], *draft], params, context=len(prompt) - 1 - cut)
        (found,) = engine.verify([feed])
        _must(found == Outcome(2, own[2]), f"2 right tokens and a wrong one behind the end of a prompt gave {found}")
        _must(engine.cached(slot) == len(prompt) + 3, "the positions of a prompt's end and a draft are not cached")
        engine.commit(slot, feed.newest + 3)
        found = _verify(engine, slot, [*prompt, *own[:3]], own[3:5], params)
        _must(found == Outcome(2, own[5]), "a draft behind the end of a prompt changes the text after it")
        engine.close(slot)


def _check_batch(
    engine: Engine, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], params: SamplingParams
) -> None:
    """The same texts, beside each other and beside a prompt that is being read."""
    first, second = _read(engine, prompts[0]), engine.open()
    draft = texts[0][:DRAFT_TOKENS]
    found = engine.verify(
        [
            Feed(first, len(prompts[0]) - 1, [prompts[0][-1], *draft], params),
            Feed(second, 0, list(prompts[1][:-1]), None),
        ]
    )
    _must(
        found == [Outcome(len(draft), texts[0][len(draft)]), None],
        "a batch of a draft and a prompt does not give the draft's own outcome and nothing for the prompt",
    )
    engine.commit(first, len(prompts[0]) - 1)
    feeds = [
        Feed(second, len(prompts[1]) - 1, [prompts[1][-1], *texts[1][:2]], params),
        Feed(first, len(prompts[0]) - 1, [prompts[0][-1], *draft], params),
    ]
    _must(
        engine.verify(feeds) == [Outcome(2, texts[1][2]), Outcome(len(draft), texts[0][len(draft)])],
        "the outcome of a draft depends on who else is in the batch",
    )
    engine.close(first)
    engine.close(second)


def _check_rejection(engine: Engine, prompt: Sequence[int], rule: Rule) -> None:
    """A draft under a rejection rule gets a finding about no more tokens than it has."""
    slot = _read(engine, prompt)
    form = DistributionFormat(engine.vocabulary_size, min(1024, engine.vocabulary_size))
    draft = [(prompt[-1] + place) % engine.vocabulary_size for place in range(3)]
    distributions = tuple(certain_distribution(token, form) for token in draft)
    weights = tuple(distribution.weight(token) for distribution, token in zip(distributions, draft, strict=True))
    evidence = (
        Evidence(rule, form, distributions=distributions)
        if rule is Rule.REJECTION
        else Evidence(rule, form, weights=weights)
    )
    (found,) = engine.verify([Feed(slot, len(prompt) - 1, [prompt[-1], *draft], _DRAWN[0], evidence)])
    _must(found is not None and not isinstance(found, Failure), f"a draft under {rule} gave {found}")
    if isinstance(found, Outcome):
        _must(0 <= found.accepted <= len(draft), f"{found.accepted} of {len(draft)} drafted tokens were accepted")
        _must(0 <= found.next_token < engine.vocabulary_size, "a token outside the vocabulary was emitted")
    engine.close(slot)


def _read(engine: Engine, prompt: Sequence[int], cut: int | None = None) -> int:
    """A new slot that has read a prompt but for its newest token, in one part or two."""
    slot, end = engine.open(), len(prompt) - 1
    cut = end if cut is None else cut
    for first, last in ((0, cut), (cut, end)):
        if first < last:
            found = engine.verify([Feed(slot, first, list(prompt[first:last]), None)])
            _must(found == [None], f"a chunk of a prompt, after which no token is wanted, gave {found}")
    return slot


def _verify(
    engine: Engine, slot: int, text: Sequence[int], draft: Sequence[int], params: SamplingParams
) -> Finding | Failure | None:
    """The outcome for a draft that follows a text, all but whose newest token is cached."""
    (found,) = engine.verify([Feed(slot, len(text) - 1, [text[-1], *draft], params)])
    return found


def _own_text(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """The target's own text after a prompt, token by token."""
    slot, text = _read(engine, prompt), list(prompt)
    for _ in range(TEXT_TOKENS):
        found = _verify(engine, slot, text, (), params)
        _must(isinstance(found, Outcome), f"an empty draft gave {found}; it must give an Outcome")
        assert isinstance(found, Outcome)
        _must(found.accepted == 0, f"{found.accepted} tokens of an empty draft were accepted")
        text.append(found.next_token)
    engine.close(slot)
    return text[len(prompt) :]


def _refuses(call: Callable[[], object], kind: type[Exception], sentence: str) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(sentence)


def _must(held: bool, sentence: str) -> None:
    if not held:
        raise AssertionError(sentence)
