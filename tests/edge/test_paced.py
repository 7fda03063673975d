"""An engine at the speed of another one: the same findings, later."""

import pytest

from multispin.control import EdgeDrafter, Verification
from multispin.edge.paced import PacedBatchDrafter, PacedEngine
from multispin.models import Verifier, load_draft_source, load_model
from multispin.speculation import DistributionFormat, DraftAsk, Feed, SamplingParams


class Clock:
    def __init__(self):
        self.now_s, self.slept_s = 5.0, []

    def time(self):
        return self.now_s

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def engines(tiny_folder):
    """The same engine twice: as it is, and paced to 2 s + 0.5 s per session + 0.25 s per token."""
    clock = Clock()
    plain, real = (Verifier(load_model(tiny_folder), 2, 32) for _ in range(2))
    return plain, PacedEngine(real, Verification(2.0, 0.5, 0.25), clock.time, clock.sleep), clock, real


def test_it_finds_what_the_engine_finds_and_waits_for_the_rest_of_the_time(engines):
    plain, paced, clock, _ = engines
    feeds = [Feed(0, 0, [1, 2, 3], SamplingParams()), Feed(1, 0, [4], SamplingParams())]
    for engine in (plain, paced):
        assert {engine.open(), engine.open()} == {0, 1}
    assert paced.verify(feeds) == plain.verify(feeds)
    assert clock.slept_s == [pytest.approx(2.0 + 2 * 0.5 + 4 * 0.25)]
    for name in ("slots", "max_length", "vocabulary_size", "rules"):
        assert getattr(paced, name) == getattr(plain, name)
    assert paced.cached(0) == plain.cached(0) == 3
    paced.commit(0, 1)
    assert paced.cached(0) == 1
    paced.close(1)
    assert paced.open() == 1


def test_a_pass_that_takes_longer_by_itself_is_not_waited_for(engines, monkeypatch):
    _, paced, clock, real = engines
    slot = paced.open()
    monkeypatch.setattr(type(real), "verify", lambda *_: clock.sleep(9.0) or [])
    paced.verify([Feed(slot, 0, [1], SamplingParams())])
    assert clock.slept_s == [9.0]


def test_drafts_of_the_edge_take_a_step_for_each_token_of_the_longest_and_a_part_for_every_token(tiny_folder):
    clock = Clock()
    source = load_draft_source("q8", tiny_folder, batched=True)
    plain, real = (source.edge_drafter(2, 32) for _ in range(2))
    paced = PacedBatchDrafter(real, EdgeDrafter(2.0, 0.5, 0.0), clock.time, clock.sleep)
    for drafter in (plain, paced):
        assert {drafter.open(), drafter.open()} == {0, 1}
    asks = [DraftAsk(0, (1, 2, 3), 3, SamplingParams()), DraftAsk(1, (4, 5), 1, SamplingParams())]
    assert paced.unread(0, (1, 2, 3)) == plain.unread(0, (1, 2, 3)) > 0
    assert paced.draft(asks) == plain.draft(asks)
    assert clock.slept_s == [pytest.approx(3 * 2.0 + 4 * 0.5)]
    hot = [ask._replace(params=SamplingParams(0.9)) for ask in asks]
    form = DistributionFormat(257, 64, 12)
    assert [ids for ids, _ in paced.draft_distributions(hot, form)] == [
        ids for ids, _ in plain.draft_distributions(hot, form)
    ]
    assert clock.slept_s[1:] == [pytest.approx(3 * 2.0 + 4 * 0.5)]
