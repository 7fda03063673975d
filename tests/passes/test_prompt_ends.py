"""The pass that reads the last of a prompt writes the text's first tokens, where the engine takes both in one feed."""

import pytest
from tests.passes.counting import CountingEngine
from tests.passes.test_streams import RandomTarget, Site, expected

from multispin.speculation import Rule, SamplingParams

MODES = ["plain", "edge", "rounds", "mixture", "streams", "auto"]


def first_report(site):
    while not site.reports and site.queue.step():
        pass
    return site.reports[0]


def apart(slots=8):
    """A target that reads a prompt in one pass, and writes in the next."""
    engine = CountingEngine(slots)
    engine.joins = False
    return engine


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_pass_that_reads_a_prompt_brings_a_token(mode, drafts):
    site = Site(mode=mode, edge=0.7 if mode in ("edge", "mixture", "auto") else None)
    number = site.join("d", 40, drafts=drafts)
    report = first_report(site)
    assert (report.members, report.prompt_tokens) == ((number,), 2)
    assert report.delivered[0] >= 1
    site.run()
    assert site.phones[number].session.generated == expected(40)


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_takes_one_or_the_other_reads_first(mode):
    site = Site(mode=mode, engine=apart(), edge=0.7 if mode in ("edge", "mixture", "auto") else None)
    number = site.join("d", 40)
    report = first_report(site)
    assert (report.members, report.prompt_tokens) == ((), 2)
    site.run()
    assert site.phones[number].session.generated == expected(40)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_last_piece_of_a_prompt_brings_a_token(mode):
    site = Site(mode=mode, prefill_tokens_per_round=16, edge=0.7 if mode in ("edge", "mixture", "auto") else None)
    number = site.join("d", 30, prompt=tuple(range(90)))
    site.run()
    reading = [report for report in site.reports if report.prompt_tokens]
    assert [report.prompt_tokens for report in reading] == [16, 16, 16, 16, 16, 9]
    assert [sum(report.delivered) for report in reading[:-1]] == [0] * 5
    assert sum(reading[-1].delivered) >= 1
    assert site.phones[number].session.generated == expected(30, first=90)


def test_what_a_device_drafted_while_its_prompt_was_read_is_verified_with_the_last_of_it():
    site = Site(prefill_tokens_per_round=16)
    number = site.join("d", 60, right=1.0, token_s=0.004, prompt=tuple(range(90)))
    site.run()
    last = [report for report in site.reports if report.prompt_tokens][-1]
    assert last.drafted[0] > 0
    assert last.delivered[0] == last.drafted[0] + 1
    assert site.phones[number].session.generated == expected(60, first=90)


@pytest.mark.parametrize("by", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_a_text_that_drafts_in_grants_begins_with_its_prompt_too(by):
    site = Site(engine=RandomTarget(8))
    number = site.join("d", 20, rule=by, params=SamplingParams(1.0, seed=4), retained=20)
    assert first_report(site).delivered == (1,)
    site.run()
    assert len(site.phones[number].session.generated) == 20


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_text_of_one_token_ends_in_the_pass_that_reads_its_prompt(mode):
    site = Site(mode=mode)
    number = site.join("d", 1)
    site.run()
    assert site.phones[number].session.generated == expected(1)
    assert len(site.reports) == 1


@pytest.mark.parametrize("mode", ["rounds", "streams"])
def test_a_device_that_is_lost_while_the_end_of_its_prompt_is_read_has_the_token_when_it_is_back(mode):
    site, was, lost = Site(mode=mode), None, []
    number = site.join("d", 30)
    was = site.engine.verify

    def verify(feeds):
        if any(feed.context for feed in feeds) and not lost:
            lost.append(number)
            site.lose(number)
        return was(feeds)

    site.engine.verify = verify
    site.run(1.0)
    assert lost
    assert site.passes.session(number).request.committed[3:] == expected(1)
    site.connect(site.phones[number])
    site.run()
    assert site.phones[number].session.generated == expected(30)
