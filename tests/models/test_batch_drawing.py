"""Tokens drawn for all rows at once are those of the definition, row by row on a CPU."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from multispin.models import Verifier
from multispin.models.batch_drawing import BatchDrawing, drawn_on_cpu
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Failure,
    Feed,
    Rule,
    SamplingParams,
    derive_seed,
    draw,
)
from multispin.speculation.noise import gumbel_numpy, noise_keys

V = 211


def params_at_random(rng):
    bias = tuple((token, rng.uniform(-9, 9)) for token in rng.sample(range(V), rng.choice([0, 0, 3])))
    held = tuple(rng.sample(range(V), rng.choice([0, 0, 4])))
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 0.8, 1.0, 2.5]),
        top_k=rng.choice([0, 0, 1, 5, 50, V, 10**6]),
        top_p=rng.choice([1.0, 1.0, 0.95, 0.5, 0.05]),
        seed=rng.randrange(2**63),
        logit_bias=bias,
        withheld=held,
        withheld_until=rng.randrange(600),
    )


def check(logits, rows):
    """Every token that is not marked is the definition's; returns how many are marked."""
    tokens, unsure = (part.tolist() for part in BatchDrawing(logits.device)(logits, rows))
    for row, token, doubt in zip(range(len(rows)), tokens, unsure, strict=True):
        expected = drawn_on_cpu(logits[row], rows[row])
        assert expected == draw(logits[row : row + 1].float().cpu(), [rows[row][1]], rows[row][0])[0]
        assert doubt or token == expected, rows[row]
    return sum(unsure)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_any_mix_of_requests_gets_the_definitions_tokens(dtype, spread, processor):
    rng, marked = random.Random(f"{dtype} {spread}"), 0
    torch.manual_seed(2)
    for _ in range(20):
        logits = (spread * torch.randn(16, V)).to(dtype).to(processor)  # narrow numbers have many ties
        marked += check(logits, [(params_at_random(rng), rng.randrange(1000)) for _ in range(16)])
    assert marked <= 3  # of 320: doubt is rare


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cuda_device_compiled_draws_are_the_definitions(dtype, caplog):
    drawing, rng = BatchDrawing(torch.device("cuda")), random.Random(3)
    drawing.compile(V, V + 5, dtype)
    assert not caplog.text  # where it cannot be compiled, that is said
    for count in (8, 24, 192):
        logits = (3.0 * torch.randn(count, V + 5)).to(dtype).cuda()[:, :V]
        rows = [(replace(params_at_random(rng), logit_bias=(), withheld=()), place) for place in range(count)]
        tokens, unsure = (part.tolist() for part in drawing(logits, rows))
        expected = [drawn_on_cpu(logits[row], rows[row]) for row in range(count)]
        assert [t for t, doubt in zip(tokens, unsure, strict=True) if not doubt] == [
            t for t, doubt in zip(expected, unsure, strict=True) if not doubt
        ]
        assert sum(unsure) <= 2


def test_ties_at_both_edges_are_kept_as_the_definition_keeps_them():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 0.0, -1.0]]).repeat(400, 1)
    rows = []
    for row in range(400):
        top_p = (0.4, 0.55, 0.7, 1.0)[row % 4]
        rows.append((SamplingParams(1.0, (2, 3, 0)[row % 3], top_p, seed=derive_seed(9, row)), row))
    assert check(logits, rows) == 0


def test_ids_without_probability_are_never_drawn_and_signed_zeros_are_equal():
    logits = torch.full((60, 40), -torch.inf)
    logits[:, 7], logits[:, 30] = 0.0, -0.0
    rows = [(SamplingParams(0.7, row % 2, (0.9, 1.0)[row % 3 == 0], seed=row), row) for row in range(60)]
    assert check(logits, rows) == 0


def test_a_draw_that_the_last_places_decide_is_marked():
    ids = np.arange(V)
    noise = np.stack([gumbel_numpy(3, position, ids) for position in range(2000)])
    order = noise.argsort(-1)
    gaps = np.diff(np.take_along_axis(noise, order, -1))
    position, place = divmod(int(gaps.argmin()), V - 1)  # two tokens whose noise is nearly the same
    pair = order[position, place : place + 2].tolist()
    assert 1e-8 < gaps.min() < 1e-7
    logits = torch.full((2, V), -torch.inf)
    logits[0, pair] = logits[1, pair] = 0.0
    logits[0, pair[0]] = float(gaps.min()) + 1e-11  # the same score but for so much
    rows = [(SamplingParams(1.0, seed=3), position)] * 2
    _, near = BatchDrawing(torch.device("cpu"))(logits, rows).tolist()
    assert near == [1, 0]


def test_a_token_at_the_edge_of_top_p_is_marked():
    """Two tokens of weight a half: whether the second is inside top-p 0.5 is a matter of rounding."""
    logits = torch.zeros(200, 2)
    rows = [(SamplingParams(1.0, top_p=0.5, seed=seed), 1) for seed in range(200)]
    marked = check(logits, rows)
    assert 60 < marked < 140


def test_keys_of_the_noise_are_those_of_one_row():
    from multispin.speculation.noise import noise_keys_of

    rng = random.Random(8)
    pairs = [(rng.randrange(2**63), rng.randrange(2**20)) for _ in range(50)]
    keys = noise_keys(*zip(*pairs, strict=True))
    assert [tuple(int(key) % 2**32 for key in column) for column in keys.T] == [noise_keys_of(*pair) for pair in pairs]


def test_what_is_not_known_here_is_left_to_the_rule_of_one_row():
    assert BatchDrawing.takes(SamplingParams(0.8, 5, 0.9, 3, ((1, 2.0),), (4,), 9))
    assert not BatchDrawing.takes(SamplingParams(0.8, presence_penalty=0.5))


def test_verify_at_once_finds_what_verify_row_by_row_finds(make_model, family):
    """The same batches by both ways: prompts, every rule, damaged weights, and rows that stay with the definition."""
    rng, form = random.Random(4), DistributionFormat(97, 20, 12)
    model = make_model(family)
    damaged = model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    if damaged:
        with torch.no_grad():
            model.get_input_embeddings().weight[96] = torch.nan
    ours, theirs = Verifier(model, 6, 120, static=True), Verifier(model, 6, 120, static=False)
    for verifier in (ours, theirs):
        for _ in range(6):
            verifier.open()
    length, failures = [0] * 6, 0
    for step in range(25):
        feeds = []
        for slot in rng.sample(range(6), rng.randint(1, 6)):
            tokens = [rng.randrange(96) for _ in range(rng.choice([1, 1, 4, 9]))]
            if rng.random() < 0.05:
                tokens[-1] = 96
            if length[slot] + len(tokens) > 110:
                continue
            params = SamplingParams(rng.choice([0.0, 0.7]), rng.choice([0, 9]), rng.choice([1.0, 0.8]), step)
            evidence = None
            if rng.random() < 0.2:
                params = None
            elif not params.greedy and rng.random() < 0.4:
                evidence = Evidence(Rule.REJECTION_UP, form, weights=(100,) * (len(tokens) - 1))
            feeds.append(Feed(slot, length[slot], tokens, params, evidence))
        found, expected = ours.verify(feeds), theirs.verify(feeds)
        for feed, mine, other in zip(feeds, found, expected, strict=True):
            if isinstance(other, Failure):
                failures += 1
                length[feed.slot] = 0
            else:
                length[feed.slot] = feed.start + len(feed.tokens)
            if evidence_of(other) is None:
                assert mine == other
            else:
                assert evidence_of(mine) == evidence_of(other)
            assert ours.cached(feed.slot) == theirs.cached(feed.slot) == length[feed.slot]
    assert bool(failures) == damaged


def evidence_of(finding):
    """What can be compared of a Rejection, whose distribution is a tensor; None for anything else."""
    return (finding.accepted, finding.token, finding.base) if hasattr(finding, "distribution") else None
