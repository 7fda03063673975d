"""An engine at the speed of another one: the same findings, later."""

import pytest

from multispin.control import Verification
from multispin.edge.paced import PacedEngine
from multispin.models import Verifier, load_model
from multispin.speculation import Feed, SamplingParams


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
