"""Every drafter and every engine of this package keeps what its interface promises; classes that do not are found."""

from pathlib import Path

import numpy as np
import pytest
from tests.slots import free_slots

from multispin.control import Verification
from multispin.edge.paced import PacedEngine
from multispin.models import ModelDrafter, PackedModel, Verifier
from multispin.models.static import StaticLayout
from multispin.simulation.engine import SimulatedEngine
from multispin.speculation import (
    ID_RULES,
    NoDrafter,
    Outcome,
    PromptLookupDrafter,
    Rule,
    SlotTable,
    TruncatedDistribution,
    accept_matching,
    certain_distribution,
)
from multispin.speculation.conformance import CHECKED_DRAFTS, check_drafter, check_engine

V = 97
TEXTS = [[4, 8, 15, 16, 23, 42, 4, 8, 15], [4, 8, 15, 16, 3, 3], [60, 61, 60, 61, 60]]


@pytest.mark.conformance
@pytest.mark.parametrize("make", [NoDrafter, PromptLookupDrafter])
def test_drafters_without_a_model(make):
    check_drafter(make, TEXTS, V)


@pytest.mark.conformance
@pytest.mark.long
def test_the_drafter_of_torch(make_model, family):
    """How tokens are drawn from logits is the same for every family: one of them draws often."""
    model, most = PackedModel.of(make_model(family)), family == "llama"
    check_drafter(
        lambda: ModelDrafter(model, 64), TEXTS if most else TEXTS[1:], V, seeds=CHECKED_DRAFTS if most else 20
    )


@pytest.mark.conformance
def test_the_drafter_of_llama_cpp(tiny_folder, gguf_of):
    from multispin.models.llama_cpp import LlamaCppContext, LlamaCppDrafter, LlamaCppModel

    model = LlamaCppModel.load(Path(gguf_of(tiny_folder, "llama")))
    check_drafter(lambda: LlamaCppDrafter(LlamaCppContext.open(model, 64)), TEXTS[1:], model.vocabulary_size)


@pytest.mark.conformance
def test_the_engine_of_torch(make_model, family):
    check_engine(Verifier(make_model(family), slots=3, max_length=64))


@pytest.mark.conformance
@pytest.mark.parametrize("ragged", [True, False])
def test_the_engine_of_torch_in_passes_of_static_shape(make_model, family, ragged):
    check_engine(Verifier(make_model(family), slots=3, max_length=64, static=StaticLayout(ragged=ragged)))


@pytest.mark.conformance
def test_an_engine_whose_time_is_emulated(make_model):
    real = Verifier(make_model("llama"), slots=3, max_length=64)
    check_engine(PacedEngine(real, Verification(0.001, 0.0, 0.0), sleep=lambda _: None))


@pytest.mark.conformance
def test_the_engine_of_the_simulator():
    check_engine(SimulatedEngine(3))


# Classes that break a promise are found ---------------------------------------------------------------------------


class Stubborn(NoDrafter):
    """Drafts the same three ids after every text."""

    def draft(self, committed, length, params):
        return [7, 8, 9][:length]


class Forgetful(Stubborn):
    def __init__(self):
        self._asked = 0

    def draft(self, committed, length, params):
        self._asked += 1
        return [self._asked % V] * length


class Talkative(Stubborn):
    def draft(self, committed, length, params):
        return [7] * (length + 1)


class Foreign(Stubborn):
    def draft(self, committed, length, params):
        return [V] * length


class Greedy(Stubborn):
    """Sends a distribution of two ids, and always drafts the more probable one."""

    def draft_distributions(self, committed, length, params, form):
        rare = form.total // 3
        distribution = TruncatedDistribution(np.array([7, 8]), np.array([form.total - rare, rare]), form)
        return [7] * length, [distribution] * length


class Lawless(Stubborn):
    def draft_distributions(self, committed, length, params, form):
        return [7] * length, [certain_distribution(8, form)] * length


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (Forgetful, "not the beginning of a longer one|depends on what was drafted before"),
        (Talkative, "6 tokens were drafted where 5"),
        (Foreign, "outside the vocabulary"),
        (Greedy, "not drawn from the distributions"),
        (Lawless, "does not hold"),
    ],
)
def test_a_drafter_that_breaks_a_promise_is_found(make, part):
    check_drafter(Stubborn, TEXTS, V)
    with pytest.raises(AssertionError, match=part):
        check_drafter(make, TEXTS, V)


class Counting(SlotTable):
    """A target whose next token is the newest one plus 1, modulo V."""

    max_length, vocabulary_size, rules = 64, V, ID_RULES

    def __init__(self):
        super().__init__(3)

    def verify(self, feeds):
        self.check(feeds, self.max_length, V)
        self.take(feeds)
        return [None if feed.params is None else self.judge(feed, feeds) for feed in feeds]

    def judge(self, feed, feeds):
        return accept_matching(feed.tokens[1:], [(token + 1) % V for token in feed.tokens])


class Gullible(Counting):
    def judge(self, feed, feeds):
        return Outcome(len(feed.tokens) - 1, (feed.tokens[-1] + 1) % V)


class Crowded(Counting):
    """What it emits depends on how many are in the batch."""

    def judge(self, feed, feeds):
        right = super().judge(feed, feeds)
        return right if len(feeds) == 1 else Outcome(right.accepted, (right.next_token + 1) % V)


class Leaky(Counting):
    """Forgets nothing: what was rolled back moves what it emits."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def commit(self, slot, length):
        super().commit(slot, length)
        self.seen += 1

    def judge(self, feed, feeds):
        return accept_matching(feed.tokens[1:], [(token + 1 + self.seen) % V for token in feed.tokens])


class Unending(Counting):
    def open(self):
        return super().open() if self._free else 0


class Fasting(Counting):
    longest_chunk = 0


class Careless(Counting):
    def close(self, slot):
        if slot in self._cached:
            super().close(slot)


class Wordy(Counting):
    def verify(self, feeds):
        return [found or Outcome(0, 1) for found in super().verify(feeds)]


class Unjust(Counting):
    """Accepts more of a draft than there is."""

    rules = ID_RULES | {Rule.REJECTION}

    def judge(self, feed, feeds):
        return super().judge(feed, feeds) if feed.evidence is None else Outcome(len(feed.tokens), 1)


class Joining(Counting):
    joins = True

    def judge(self, feed, feeds):
        return accept_matching(feed.draft, [(token + 1) % V for token in feed.tokens[feed.context :]])


class Hasty(Joining):
    """Takes the end of a prompt for a draft."""

    def judge(self, feed, feeds):
        return Counting.judge(self, feed, feeds)


class Forgetful(Joining):
    """Keeps nothing of a prompt's end that a draft stands behind."""

    def take(self, feeds):
        super().take(feeds)
        for feed in feeds:
            if feed.context:
                self._cached[feed.slot] -= feed.context


@pytest.mark.parametrize(
    ("engine", "part"),
    [
        (Hasty, "behind the end of a prompt gave"),
        (Forgetful, "a prompt's end and a draft are not cached"),
        (Gullible, "a wrong one"),
        (Crowded, "a batch of a draft and a prompt|who else is in the batch"),
        (Leaky, "right tokens gave"),
        (Unending, "more slots"),
        (Fasting, "no prompt would ever be read"),
        (Careless, "given back twice"),
        (Wordy, "no token is wanted"),
        (Unjust, "of 3 drafted tokens were accepted"),
    ],
)
def test_an_engine_that_breaks_a_promise_is_found(engine, part):
    check_engine(Counting())
    check_engine(Joining())
    with pytest.raises(AssertionError, match=part):
        check_engine(engine())


def test_all_slots_are_free_again():
    engine = Counting()
    check_engine(engine)
    assert free_slots(engine) == 3
