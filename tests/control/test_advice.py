"""Advice: figures that are those of the decisions, and break-evens at which the answer really turns."""

from dataclasses import replace

import pytest

from multispin.control import Cell, Device, EdgeDrafter, Scenario, Verification, decide
from multispin.control.advice import STREAMS_MATTER, Advice, Streamed, advise, curves, sentences
from multispin.control.break_even import PAYING_SHARE, pays, slowed, with_users
from multispin.control.exact.fluid import fluid
from multispin.control.frames import decide_with_frames
from multispin.errors import InputError

LAPTOPS = Scenario(
    Cell(2e6, 16, 25, 0),
    Verification(0.125, 0.001, 0.0005),
    tuple(Device(f"laptop-{k}", 0.009 + 0.001 * k, 3.0, 0.72 + 0.02 * k, delay_s=0.005) for k in range(6)),
    EdgeDrafter(0.005, 0.0002, 0.65),
)


@pytest.fixture(scope="module")
def laptops() -> Advice:
    return advise(LAPTOPS)


def _border(advice: Advice, quantity: str):
    return next(found for found in advice.break_evens if found.quantity == quantity)


def test_options_are_what_the_decisions_say(laptops):
    assert laptops.devices_pay
    for option in laptops.options:
        policy = option.policy if option.mode == "rounds" else "heterogeneous"
        made = decide_with_frames(LAPTOPS, policy, option.mode)
        assert option.goodput_tokens_per_s == pytest.approx(made.goodput_tokens_per_s)
        assert option.per_user_tokens_per_s == pytest.approx(made.goodput_tokens_per_s / 6)
        assert option.slowest_tokens_per_s == min(choice.tokens_per_s for choice in made.sessions)
    modes = [option.mode for option in laptops.options]
    assert modes[:2] == ["plain", "edge"]
    assert modes[-1] == "mixture"
    plain, best = laptops.option("plain"), laptops.option("mixture")
    assert best.gain_over_plain == pytest.approx(best.goodput_tokens_per_s / plain.goodput_tokens_per_s - 1)
    assert [policy for policy, _ in laptops.skipped] == ["plus-two-minus-one"]


def test_devices_pay_on_one_side_of_every_border_and_not_on_the_other(laptops):
    speed = _border(laptops, "seconds_per_token")
    assert speed.pays == "below"
    assert pays(slowed(LAPTOPS, 0.998 * speed.value / speed.here))
    assert not pays(slowed(LAPTOPS, 1.002 * speed.value / speed.here))

    trip = _border(laptops, "round_trip_s")
    assert trip.here == pytest.approx(0.01)
    for factor, good in ((0.99, True), (1.01, False)):
        devices = tuple(replace(d, delay_s=0.5 * factor * trip.value) for d in LAPTOPS.devices)
        assert pays(replace(LAPTOPS, devices=devices)) == good

    users = _border(laptops, "users")
    count = int(users.value)
    assert users.pays == "above"
    assert pays(with_users(LAPTOPS, count))
    assert not pays(with_users(LAPTOPS, count - 1))

    alpha = _border(laptops, "acceptance_rate")
    assert alpha.pays == "above"
    assert 0.3 < alpha.value < alpha.here


def test_paying_means_a_gain_that_matters():
    alone = decide(LAPTOPS, mode="edge").goodput_tokens_per_s
    slow = slowed(LAPTOPS, _border(advise(LAPTOPS, ()), "seconds_per_token").value / 0.0115)
    assert decide(slow).goodput_tokens_per_s == pytest.approx(alone * (1 + PAYING_SHARE), rel=2e-3)


def test_a_quick_edge_needs_no_devices_and_one_without_a_drafter_is_compared_with_plain_decoding():
    quick = replace(LAPTOPS, verifier=Verification(0.005, 0.0))
    found = advise(quick, ("heterogeneous",))
    assert not found.devices_pay
    words = sentences(found)
    assert words[0].startswith("Devices do not pay here")
    assert any("draft a token in less than" in said or "30 times faster" in said for said in words)
    bare = advise(replace(LAPTOPS, edge_drafter=None), ("heterogeneous",))
    assert bare.option("edge") is None
    assert bare.option("plain").gain_over_edge is None
    assert sentences(bare)[0].startswith("Devices pay here")


def test_one_token_is_no_plural():
    # With everything else as it is, longer drafts than one token are not allowed.
    short = replace(LAPTOPS, cell=replace(LAPTOPS.cell, max_draft_length=1), edge_drafter=None)
    words = " ".join(sentences(advise(short, ())))
    assert "drafts 1 token for" in words
    assert "1 tokens" not in words


def test_words_name_the_borders(laptops):
    words = " ".join(sentences(laptops))
    speed = _border(laptops, "seconds_per_token")
    assert f"draft a token in less than {1e3 * speed.value:.3g} ms (now 11.5 ms on average)" in words
    assert f"with {_border(laptops, 'users').value:.0f} users or more (now 6)" in words


def test_more_users_are_like_the_first_and_fewer_are_some_of_them():
    many = with_users(LAPTOPS, 8)
    assert len({device.name for device in many.devices}) == 8
    assert many.devices[6].seconds_per_token == LAPTOPS.devices[0].seconds_per_token
    assert with_users(LAPTOPS, 2).devices == LAPTOPS.devices[:2]


def test_curves_meet_the_site_where_it_is():
    speed, users = curves(LAPTOPS)
    at = speed.values.index(pytest.approx(speed.here))
    best = decide_with_frames(LAPTOPS).goodput_tokens_per_s
    assert speed.goodputs["mixture"][at] == pytest.approx(best)
    assert users.goodputs["mixture"][users.values.index(6.0)] == pytest.approx(best)
    assert set(speed.goodputs) == {"plain", "edge", "rounds", "mixture"}
    for curve in (speed, users):
        for mode, series in curve.goodputs.items():
            assert len(series) == len(curve.values)
            assert all(a >= b * (1 - 1e-9) for a, b in zip(curve.goodputs["mixture"], series, strict=True)), mode


def test_streams_are_what_they_were_simulated_to_be_below_the_bound_that_is_proved():
    asked = []

    def streams(site: Scenario, seeds: int) -> Streamed:
        asked.append((site, seeds))
        return Streamed(200.0, 20.0)

    found = advise(LAPTOPS, ("heterogeneous",), streams=streams)
    option = found.option("streams")
    assert asked[0][0] == LAPTOPS
    assert (option.goodput_tokens_per_s, option.slowest_tokens_per_s, option.basis) == (200.0, 20.0, "simulated")
    assert option.per_user_tokens_per_s == pytest.approx(200.0 / 6)
    assert option.upper_bound_tokens_per_s == fluid(LAPTOPS).upper_bound_tokens_per_s
    assert option.gain_over_plain == pytest.approx(200.0 / found.option("plain").goodput_tokens_per_s - 1)
    assert {each.basis for each in found.options if each.mode != "streams"} == {"planned"}
    assert sentences(found)[0].startswith("Devices pay here: 200 tokens/s in streams")
    assert sentences(found)[1].startswith("Best without streams: ")
    assert "if nobody may get less than with plain decoding" in sentences(found)[2]
    speed, users = curves(LAPTOPS, streams=streams)
    assert (speed.here, 200.0) in speed.streamed
    assert asked.count(asked[0]) == 3  # bar and curves show the same simulation of the site as it is
    assert {count for count, _ in users.streamed} <= set(users.values)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (7.0, 7.0), (1.0, 7.0)])
def test_weights_decide_and_every_token_counts_alike(weights):
    devices = tuple(replace(d, weight=w) for d, w in zip(LAPTOPS.devices[:2], weights, strict=True))
    found = advise(replace(LAPTOPS, devices=devices), ("fixed",), streams=lambda _site, _seeds: Streamed(60.0, 30.0))
    alike = fluid(replace(LAPTOPS, devices=LAPTOPS.devices[:2])).upper_bound_tokens_per_s
    assert found.option("streams").upper_bound_tokens_per_s == pytest.approx(alike)
    assert any("weighted tokens" in each for each in sentences(found)) == (weights == (1.0, 7.0))


@pytest.mark.parametrize("share", [0.8, 1.2])
def test_a_user_who_gets_less_than_with_plain_decoding_in_streams_is_named(share):
    plain = advise(LAPTOPS, ()).option("plain").slowest_tokens_per_s
    found = advise(LAPTOPS, ("heterogeneous",), streams=lambda site, seeds: Streamed(200.0, share * plain))
    said = [each for each in sentences(found) if "the slowest user has" in each]
    assert len(said) == (share < 1.0)
    assert all("has 0.80 of plain decoding" in each for each in said)


def test_a_small_gain_of_streams_is_no_reason_for_devices_and_a_large_one_is():
    quick = replace(LAPTOPS, verifier=Verification(0.005, 0.0))
    alone = advise(quick, ()).option("edge").goodput_tokens_per_s
    for gain, useful in ((0.5 * STREAMS_MATTER, False), (1.1 * STREAMS_MATTER, True)):
        found = advise(quick, (), streams=lambda _site, _seeds, gain=gain: Streamed(alone * (1.0 + gain), 1.0))
        assert found.devices_pay == useful
        assert sentences(found)[0].startswith("Devices pay here" if useful else "Devices do not pay here")


@pytest.mark.long
def test_a_site_that_cannot_stream_says_why():
    def streams(_site: Scenario, _seeds: int) -> Streamed:
        raise InputError("no streams here")

    padded = replace(LAPTOPS, verifier=replace(LAPTOPS.verifier, padded=True))
    found = advise(padded, ("heterogeneous",), streams=streams)
    assert found.option("streams") is None
    assert any(name == "streams" and "padded = false" in reason for name, reason in found.skipped)
    assert ("streams", "no streams here") in advise(LAPTOPS, (), streams=streams).skipped
