"""Profiling: fits that know the answer, drafters that are always right, traces that agree with real drafting."""

import numpy as np
import pytest
import torch
from tests.slots import free_slots

from multispin.errors import InputError
from multispin.models import Verifier, decode_together, load_drafter, load_model, load_tokenizer
from multispin.models.drafter import ModelDrafter
from multispin.profiling import BatchTiming, drafting_times, fit_latency, follow, hazards, measure_latency, rate_of
from multispin.speculation import PromptLookupDrafter, SamplingParams


def synthetic(fixed_s, per_device_s, per_token_s, noise=0.0):
    generator = np.random.default_rng(0)
    points = []
    for devices in (1, 2, 4, 8):
        for length in (0, 2, 4, 8):
            exact = fixed_s + per_device_s * devices + per_token_s * devices * (length + 1)
            points.append(BatchTiming(devices, length, exact * (1 + noise * generator.standard_normal())))
    return points


def test_a_fit_finds_the_coefficients_that_made_its_points():
    fit = fit_latency(synthetic(0.02, 0.003, 0.001))
    assert (fit.fixed_s, fit.per_device_s, fit.per_token_s) == pytest.approx((0.02, 0.003, 0.001), rel=1e-6)
    assert fit.relative_rms < 1e-9
    assert fit.predict(3, 10) == pytest.approx(0.02 + 0.009 + 0.010)


def test_noise_shows_in_the_error_and_no_coefficient_is_negative():
    fit = fit_latency(synthetic(0.0, 0.0, 0.001, noise=0.05))
    assert 0.01 < fit.relative_rms < 0.1
    assert min(fit.fixed_s, fit.per_device_s, fit.per_token_s) >= 0
    assert abs(fit.worst_relative) >= fit.relative_rms


def test_too_few_points_are_refused():
    with pytest.raises(InputError, match="too few"):
        fit_latency(synthetic(1, 1, 1)[:2])


class Clock:
    """Counts what it is asked: every call is a second later."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_batches_are_timed_in_turns_and_leave_nothing_behind(tiny_folder):
    engine = Verifier(load_model(tiny_folder), 4, 64)
    turns = []
    points = measure_latency(engine, [(1, 0), (4, 3)], 20, 3, Clock(), lambda done, total: turns.append((done, total)))
    assert [(p.devices, p.draft_length, p.seconds) for p in points] == [(1, 0, 1.0), (4, 3, 1.0)]
    assert points[1].tokens == 16
    assert turns == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert free_slots(engine) == 4
    for grid, context in (([(5, 0)], 20), ([(1, 8)], 60)):
        with pytest.raises(InputError, match=r"the engine's (4 slots|max_length = 64)"):
            measure_latency(engine, grid, context, 1, Clock(), lambda *_: None)


def test_timing_ends_with_its_time_but_not_before_three_calls_of_each_batch(tiny_folder):
    engine = Verifier(load_model(tiny_folder), 4, 64)

    def turns(repeats, longest_s):
        found = []
        points = measure_latency(
            engine, [(1, 0), (4, 3)], 20, repeats, Clock(), lambda *turn: found.append(turn), longest_s=longest_s
        )
        assert [p.seconds for p in points] == [1.0, 1.0]
        return found

    assert turns(9, 0.0)[-2:] == [(3, 10), (4, 4)]  # the first warms up
    assert turns(9, 20.0)[-1] == (5, 5)  # a reading of this clock takes 1 s, and a turn has four or five
    assert turns(2, 0.0) == [(1, 3), (2, 3), (3, 3)]
    assert turns(9, 1e9)[-1] == (10, 10)


@pytest.fixture(scope="module")
def written(tiny_folder):
    """The tiny target's texts at both temperatures: (params, prompt length, ids)."""
    target, tokenizer = Verifier(load_model(tiny_folder), 2, 128), load_tokenizer(tiny_folder)
    found = []
    for temperature in (0.0, 0.9):
        params = SamplingParams(temperature, seed=3)
        prompt = tokenizer.encode_chat("one two one two one")
        ((text,), _) = decode_together(target, [(prompt, params)], 30, (), Clock())
        found.append((params, len(prompt), prompt + text))
    return target, found


def perturbed(folder):
    """A drafter of float32, in which two ways to compute agree: it is right as often as not."""
    model, noise = load_model(folder), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=noise)
    return model


def test_the_target_itself_is_always_right(tiny_folder, written):
    target, texts = written
    drafter = ModelDrafter(load_model(tiny_folder), 128)
    for params, begin, text in texts:
        found = follow(drafter, target, text, begin, params, "p", "code")
        assert found.trace.accepts == "1" * 30
        if params.greedy:
            assert found.overlaps == ()
        else:
            assert np.allclose(found.overlaps, 1.0, atol=1e-4)


@pytest.mark.parametrize("kind", ["model", "lookup"])
def test_a_trace_says_what_real_drafting_finds(tiny_folder, written, kind):
    target, texts = written
    drafter = ModelDrafter(perturbed(tiny_folder), 128) if kind == "model" else PromptLookupDrafter()
    seen = ""
    for params, begin, text in texts:
        found = follow(drafter, target, text, begin, params, "p", "code")
        seen += found.trace.accepts
        assert len(found.trace.accepts) == len(text) - begin
        for at in range(0, 26, 5):  # a draft from here agrees up to its first mistake
            draft = drafter.draft(text[: begin + at], 4, params)
            right = next((i for i, token in enumerate(draft) if token != text[begin + at + i]), len(draft))
            if kind == "model":
                expected = (found.trace.accepts[at : at + 4] + "0").index("0")
                assert right == min(expected, len(draft))
            else:
                assert (right > 0) == (found.trace.accepts[at] == "1")
    assert "1" in seen
    assert "0" in seen


def test_overlap_is_what_rejection_accepts(tiny_folder, written):
    """Σ min(p, q) against both distributions computed by transformers alone."""
    target, texts = written
    params, begin, text = texts[1]
    found = follow(ModelDrafter(perturbed(tiny_folder), 128), target, text, begin, params, "p", "code")
    with torch.no_grad():
        ids = torch.tensor([text[:-1]])
        p, q = (
            (each(ids).logits[0, begin - 1 :].double() / params.temperature).softmax(-1)
            for each in (load_model(tiny_folder), perturbed(tiny_folder))
        )
    expected = torch.minimum(p, q).sum(-1)
    assert expected.max() < 0.97
    assert np.allclose(found.overlaps, expected, atol=1e-4)


def test_hazards_of_runs():
    # From each start: "1101" offers 1,1,0 / 1,0 / 0 / 1 (the text ends there).
    assert hazards(["1101"], 3) == [3 / 4, 1 / 2, 0.0]
    assert hazards(["111111"], 3) == [1.0, 1.0, 1.0]
    assert hazards(["0"], 3) == [0.0]
    assert hazards([""], 3) == []


def test_a_rate_and_its_interval():
    rate = rate_of([[1, 0, 1, 1], [0, 0], [1, 1, 1, 1, 1, 1]])
    assert rate.mean == pytest.approx(9 / 12)
    assert rate.low < rate.mean < rate.high <= 1.0
    assert rate.positions == 12
    assert np.isnan(rate_of([[1.0]]).low)
    assert rate_of([]).positions == 0


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Texts with rates of their own around 0.6, as task families have: 95 % intervals hold 0.6 in 1,000 trials."""
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(1000):
        own = generator.beta(6, 4, 12)
        rate = rate_of([(generator.random(40) < each).astype(float) for each in own])
        held += rate.low <= 0.6 <= rate.high
    assert 920 <= held <= 975  # three standard deviations are 21


def test_time_per_token_counts_the_tokens_that_came(tiny_folder):
    model_drafter, _ = load_drafter("q6", tiny_folder, 64)
    assert drafting_times(model_drafter, [1, 2, 3], SamplingParams(), 4, 3, Clock()) == [0.25] * 3
    assert drafting_times(PromptLookupDrafter(), [1, 2, 3], SamplingParams(), 4, 2, Clock()) == [1.0] * 2
