"""What an edge does in streams before it knows what a pass, a session and a draft of its own cost."""

from concurrent.futures import Executor, Future

import pytest
from tests.passes.counting import CountingEngine, RandomDrafter
from tests.passes.test_streams import Site, expected

from multispin.control.streams import choose
from multispin.passes import Controller, ControllerSettings, DraftHere, Limits
from multispin.passes.edge_drafts import PROMPT_LENGTH, UNTIMED_LENGTH, EdgeDrafts
from multispin.passes.seats import Seats
from multispin.passes.state import EdgeState
from multispin.passes.steps import EdgeAsk
from multispin.passes.streams import UNLEARNED_PASSES
from multispin.speculation import DraftAsk, SamplingParams


@pytest.fixture
def asked():
    """What the decision was told each time: number of the pass that ended last, and the sessions."""
    calls = []

    def spy(ready, verifier, price, *more):
        calls.append((site.passes.round, ready))
        return choose(ready, verifier, price, *more)

    # A pass takes ten times what is believed at first: who believes that owes everybody much.
    site = Site(edge=0.9, pass_s=lambda jobs: 0.3, decide=spy)
    numbers = [site.join(f"d{k}", 120, right=0.5, token_s=0.02) for k in range(4)]
    drafts, drafted = [], site.passes.drafted

    def noted(step, *more):
        drafts.append(max(each.ask.length for each in step.asks))
        drafted(step, *more)

    site.passes.drafted = noted
    site.run()
    assert all(site.phones[number].session.generated == expected(120) for number in numbers)
    return calls, drafts


class Never(Executor):
    """Finds nothing."""

    def submit(self, work, /, *arguments, **named):
        return Future()


def test_time_is_worth_what_plain_decoding_makes_of_it_before_a_price_was_found():
    calls = []

    def spy(ready, verifier, price, *more):
        calls.append((len(ready), verifier.verify_s([0] * max(1, len(ready))), price))
        return choose(ready, verifier, price, *more)

    site = Site(edge=0.9, decide=spy)
    site.passes.controller.prices.use(Never())
    numbers = [site.join(f"d{k}", 20) for k in range(4)]
    site.run()
    assert all(site.phones[number].session.generated == expected(20) for number in numbers)
    assert any(count for count, _, _ in calls)
    assert all(price >= count / plain_s for count, plain_s, price in calls)


def test_nobody_counts_as_short_by_a_guess(asked):
    calls, _ = asked
    first = [each for number, ready in calls if number <= UNLEARNED_PASSES for each in ready]
    later = [each for number, ready in calls if number > UNLEARNED_PASSES + 1 for each in ready]
    assert first
    assert all(each.short_tokens == each.behind_tokens == 0.0 for each in first)
    assert any(each.short_tokens for each in later)


def test_the_edges_drafter_drafts_little_until_its_time_was_seen(asked):
    _, drafts = asked
    assert drafts[0] <= UNTIMED_LENGTH
    assert max(drafts) > UNTIMED_LENGTH


@pytest.mark.parametrize(("unread", "most"), [(9, 3), (PROMPT_LENGTH + 1, UNTIMED_LENGTH)])
def test_drafts_after_what_a_device_drafted_are_timed_and_those_after_a_prompt_are_not(unread, most):
    site = Site(edge=0.9)
    site.edge.unread = lambda slot, committed: unread
    number, lengths, drafted = site.join("d", 120, drafts=False), [], site.passes.drafted

    def noted(step, *more):
        lengths.extend(each.ask.length for each in step.asks)
        drafted(step, *more)

    site.passes.drafted = noted
    site.run()
    assert site.phones[number].session.generated == expected(120)
    assert max(lengths) >= most
    assert (max(lengths) > UNTIMED_LENGTH) == (unread <= PROMPT_LENGTH)


def test_a_drafter_of_the_edge_that_failed_was_not_timed():
    engine, limits = CountingEngine(2), Limits()
    controller = Controller(ControllerSettings("heterogeneous", 1e6, 7, 16, mode="streams", edge_drafts=True))
    drafts = EdgeDrafts(EdgeState(engine, controller, limits, Seats(engine, limits)), RandomDrafter(0.9))
    step = DraftHere((EdgeAsk(1, DraftAsk(0, (1, 2, 3), 2, SamplingParams()), None),))
    drafts.drafted(step, [([], [])], 1e-6, 0.0)  # as the edge does for one that has failed
    assert drafts.room(16) == UNTIMED_LENGTH
    drafts.drafted(step, [([4, 5], [])], 0.01, 0.0)
    assert drafts.room(16) == 16
