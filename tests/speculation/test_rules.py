import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multispin.speculation import Outcome, SamplingParams, accept_matching, draw, verify_draft

tokens = st.lists(st.integers(0, 5), max_size=8)


@given(tokens, st.data())
def test_accepted_is_the_longest_common_prefix(drafted, data):
    emitted = data.draw(st.lists(st.integers(0, 5), min_size=len(drafted) + 1, max_size=len(drafted) + 1))
    outcome = accept_matching(drafted, emitted)
    assert list(drafted[: outcome.accepted]) == emitted[: outcome.accepted]
    assert outcome.accepted == len(drafted) or drafted[outcome.accepted] != emitted[outcome.accepted]
    assert outcome.next_token == emitted[outcome.accepted]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.8, top_p=0.9, seed=5)])
def test_the_text_is_the_targets_own_whatever_is_drafted(processor, params):
    # The target's own text is written on the CPU, so that both processors must say the same.
    # A first-order "target": logits depend on the newest token. Any drafts must lead to its own chain.
    table = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) * 2
    own = [3]
    while len(own) < 60:
        own += draw(table[own[-1:]], [len(own)], params)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        text = [3]
        while len(text) < 60:
            length = int(torch.randint(0, 6, (), generator=generator))
            drafted = torch.randint(0, 12, (length,), generator=generator).tolist()
            if length > 1:  # make the first one right, so that acceptance happens
                drafted[0] = own[len(text)] if len(text) < len(own) else drafted[0]
            logits = table[torch.tensor([text[-1], *drafted])].to(processor)
            outcome = verify_draft(drafted, logits, len(text), params)
            text += [*drafted[: outcome.accepted], outcome.next_token]
        assert text[:60] == own


def test_a_shifted_position_would_be_noticed():
    # The mutant "noise of the wrong position" must not give the target's own text.
    params = SamplingParams(1.0, seed=3)
    logits = torch.zeros(8, 1000)
    drafted = draw(logits[:7], list(range(10, 17)), params)
    assert verify_draft(drafted, logits, 10, params).accepted == 7
    assert verify_draft(drafted, logits, 11, params).accepted == 0


def test_an_empty_draft_is_plain_decoding():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert verify_draft([], logits, 4, SamplingParams()) == Outcome(0, 1)


def test_acceptance_with_shared_noise_is_at_least_its_bound():
    # arXiv 2408.07978: Pr(accept) >= (1-TV)/(1+TV); 4 standard errors over 4,000 positions.
    count = 4000
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(count, 30, generator=generator) * 1.5
    drafter = target + 0.7 * torch.randn(count, 30, generator=generator)
    params = SamplingParams(1.0, seed=9)
    positions = list(range(count))
    same = torch.tensor(draw(target, positions, params)) == torch.tensor(draw(drafter, positions, params))
    tv = 0.5 * (target.softmax(-1) - drafter.softmax(-1)).abs().sum(-1)
    bound = ((1 - tv) / (1 + tv)).mean()
    assert same.double().mean() > bound - 4 * (0.25 / count) ** 0.5
    assert same.double().mean() < 1
