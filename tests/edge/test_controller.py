import pytest

from multispin.edge import Controller, ControllerSettings, Member
from multispin.errors import InputError


def controller(policy="heterogeneous", bandwidth_hz=1e4):
    return Controller(ControllerSettings(policy, bandwidth_hz, 16, 16))


def learn(control, session, rate, seconds_per_token, efficiency, rounds=40):
    """Feed what a device of these true values would show, with frames of 176 fixed bits."""
    control.join(session, 0.05, 3.0)
    for _ in range(rounds):
        control.observe_draft(session, 4, 4 * seconds_per_token, 240, 1e3, 240 / (1e3 * efficiency))
        control.observe_outcome(session, 4, round(4 * rate))
        control.observe_verification(2, 10, 0.1)


def test_what_is_learned_reaches_the_plan():
    control = controller()
    learn(control, 1, 1.0, 0.01, 6.0)
    learn(control, 2, 0.0, 0.10, 1.0)
    plan = control.plan([Member(1, "good", 50), Member(2, "bad", 50)])
    good, bad = plan.devices
    assert good.draft_length > bad.draft_length >= 1
    assert control.acceptance_rate(1) > 0.95
    assert control.acceptance_rate(2) < 0.1


def test_a_frames_fixed_bits_do_not_keep_drafts_short():
    # From a history of one-token drafts, spreading the fixed bits over one token would make longer ones look dear.
    control = controller(bandwidth_hz=2e3)
    control.join(1, 0.005, 3.0)
    for _ in range(40):
        control.observe_draft(1, 1, 0.005, 176 + 16, 2e3, (176 + 16) / (2e3 * 3.0))
        control.observe_outcome(1, 1, 1)
        control.observe_verification(1, 2, 0.1)
    assert control.plan([Member(1, "good", 50)]).devices[0].draft_length > 8


def test_room_bounds_the_draft_and_none_is_plain_decoding():
    control = controller()
    for session in (1, 2):
        learn(control, session, 1.0, 0.01, 6.0)
    plan = control.plan([Member(1, "a", 2), Member(2, "b", 0)])
    assert plan.devices[0].draft_length <= 2
    assert (plan.devices[1].draft_length, plan.devices[1].bandwidth_hz) == (0, 0.0)


def test_reserved_band_is_not_given_twice():
    control = controller()
    learn(control, 1, 0.9, 0.01, 6.0)
    plan = control.plan([Member(1, "a", 50)], reserved_hz=9_900.0)
    assert plan.devices[0].bandwidth_hz <= 100.0 + 1e-9


def test_nobody_to_plan_for_is_no_plan():
    assert controller().plan([]) is None


@pytest.mark.parametrize(
    ("policy", "bandwidth_hz"), [("p2p", 1e4), ("nonsense", 1e4), ("fixed", 0.0), ("fixed", float("nan"))]
)
def test_impossible_settings_are_refused(policy, bandwidth_hz):
    with pytest.raises(InputError, match=r"policy|bandwidth_hz"):
        ControllerSettings(policy, bandwidth_hz, 16)
