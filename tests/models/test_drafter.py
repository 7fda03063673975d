import pytest
import torch

from multispin.errors import InputError
from multispin.models import CachedModel, ModelDrafter, decode_alone, load_draft_source, load_model, round_weights
from multispin.models.distilled import carve, fingerprint, save_drafter
from multispin.models.drafter_card import DrafterCard
from multispin.models.quantised import FEW_ROWS, RoundedLinear, WholeLinear, whole_weights
from multispin.speculation import DistributionFormat, NoDrafter, PromptLookupDrafter, SamplingParams, draft_token

GREEDY = SamplingParams()


def test_a_drafter_that_is_the_target_guesses_the_targets_text(make_model, family):
    model, prompt = make_model(family), [4, 8, 15, 16, 23, 42]
    for params in (GREEDY, SamplingParams(1.0, seed=3)):
        own = decode_alone(model, prompt, params, 12)
        drafter = ModelDrafter(make_model(family), 64)
        drafter.prepare(prompt)
        assert drafter.draft(prompt, 12, params) == own


def test_a_drafter_follows_the_committed_text_wherever_it_turns(make_model):
    drafter, fresh = (ModelDrafter(make_model("llama"), 64) for _ in range(2))
    text = [1, 2, 3, 4, 5]
    for turn in ([9, 9], [7], [30, 31, 32], []):
        drafter.draft(text, 6, GREEDY)  # leaves guesses in its cache
        text = [*text, *turn]
        assert drafter.draft(text, 4, GREEDY) == ModelDrafter(make_model("llama"), 64).draft(text, 4, GREEDY)
    assert drafter.draft([50, 51], 3, GREEDY) == fresh.draft([50, 51], 3, GREEDY)  # another text altogether


@pytest.mark.parametrize(("prompt", "reading"), [(20, [20]), (60, [59, 1])], ids=["short prompt", "long prompt"])
def test_what_a_draft_accepted_whole_leaves_to_read_costs_no_pass_of_its_own(make_model, monkeypatch, prompt, reading):
    """A short prompt is read along with the first draft, a long one before it."""
    drafter, text = ModelDrafter(make_model("llama"), 128), list(range(prompt))
    passes = []
    forward = CachedModel.forward
    monkeypatch.setattr(CachedModel, "forward", lambda self, feeds: passes.append(feeds) or forward(self, feeds))
    text += [*drafter.draft(text, 3, GREEDY), 7]
    drafter.draft(text, 3, GREEDY)
    assert [len(feeds[0].tokens) for feeds in passes] == [*reading, 1, 1, 2, 1, 1]


def test_a_full_slot_shortens_the_draft(make_model):
    drafter = ModelDrafter(make_model("llama"), 10)
    assert len(drafter.draft(list(range(8)), 5, GREEDY)) == 2
    assert drafter.draft(list(range(10)), 5, GREEDY) == []


def test_prompt_lookup_continues_the_most_recent_longest_match():
    drafter = PromptLookupDrafter()
    assert drafter.draft([1, 2, 3, 9, 1, 2, 3, 8, 7, 1, 2, 3], 2, GREEDY) == [8, 7]
    assert drafter.draft([5, 1, 6, 1], 4, GREEDY) == [6, 1]
    assert drafter.draft([1, 2, 3], 4, GREEDY) == []
    assert NoDrafter().draft([1, 1], 4, GREEDY) == []


def test_rounding_to_fewer_bits_guesses_worse(make_model):
    model, prompt = make_model("llama"), [4, 8, 15, 16, 23, 42]
    own = decode_alone(model, prompt, GREEDY, 60)
    right = []
    for bits in (8, 3):
        drafter = ModelDrafter(round_weights(make_model("llama"), bits), 128)
        guesses = [drafter.draft([*prompt, *own[:i]], 1, GREEDY)[0] for i in range(60)]
        right.append(sum(a == b for a, b in zip(guesses, own, strict=True)))
    assert right[0] > right[1]


@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_and_many_are_the_same_product(bias):
    torch.manual_seed(3)
    linear = torch.nn.Linear(64, 48, bias=bias)
    rounded = RoundedLinear.of(linear, 8)
    rows = torch.randn(2, FEW_ROWS + 1, 64)
    narrow = rows.to(torch.bfloat16)
    with torch.no_grad():
        expected, many = linear(rows), rounded(narrow)
        few = torch.stack([torch.stack([rounded(row[None])[0] for row in part]) for part in narrow])
    assert few.shape == many.shape == expected.shape
    torch.testing.assert_close(few.float(), expected, atol=0.03, rtol=0.03)
    torch.testing.assert_close(many.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("bias", [False, True])
def test_whole_numbers_lose_only_what_the_weights_lose_and_no_row_sees_another(bias):
    torch.manual_seed(4)
    linear = torch.nn.Linear(96, 40, bias=bias)
    whole = WholeLinear(linear)
    rows = torch.randn(3, 7, 96) * torch.logspace(-3, 3, 7)[:, None]  # each row has a scale of its own
    rows[1, 2] = 0.0
    scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
    rounded = (linear.weight.detach() / scale).round() * scale
    with torch.no_grad():
        found = whole(rows)
        expected = torch.nn.functional.linear(rows.double(), rounded.double(), linear.bias.double() if bias else None)
        alone = torch.stack([torch.stack([whole(row[None])[0] for row in part]) for part in rows])
    sizes = rows.double().abs().amax(-1, keepdim=True) * rounded.double().abs().sum(-1)
    assert ((found - expected).abs() <= sizes / (2 * 8127) + 1e-6).all()
    assert torch.equal(found, alone)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_whole_numbers_do_not_saturate_where_all_of_them_are_largest(sign):
    linear = torch.nn.Linear(1536, 8, bias=False)
    with torch.no_grad():
        linear.weight.fill_(sign * 0.5)
        found = WholeLinear(linear)(torch.stack([torch.full((1536,), 3.0), torch.full((1536,), -3.0)]))
    torch.testing.assert_close(found, sign * torch.tensor([[2304.0] * 8, [-2304.0] * 8]))


def test_whole_numbers_are_for_a_cpu(make_model):
    with pytest.raises(InputError, match="on the CPU only"):
        whole_weights(make_model("llama").to("meta"))


def test_a_processor_that_cuts_sums_off_is_refused_whole_numbers(make_model, monkeypatch):
    monkeypatch.setattr(WholeLinear, "forward", lambda self, inputs: inputs.new_full((1, 1), 2.0**15))
    with pytest.raises(InputError, match="no exact int8 sums"):
        whole_weights(make_model("llama"))


def test_rounding_to_a_width_that_does_not_exist_is_refused(make_model):
    with pytest.raises(InputError, match="bits = 9"):
        round_weights(make_model("llama"), 9)


def test_a_draft_with_distributions_is_drawn_from_exactly_these_distributions(make_model):
    model, prompt = make_model("llama"), [4, 8, 15, 16, 23, 42]
    form = DistributionFormat(97, retained=20, probability_bits=8)
    params = SamplingParams(0.9, top_p=0.9, seed=11, logit_bias=((3, -100.0),), withheld=(5,), withheld_until=8)
    drafter = ModelDrafter(model, 64)
    ids, distributions = drafter.draft_distributions(prompt, 5, params, form)
    assert ids == [draft_token(distribution, params.seed, 6, 6 + i) for i, distribution in enumerate(distributions)]
    assert not any(distribution.weight(3) for distribution in distributions)
    assert [bool(distribution.weight(5)) for distribution in distributions[:2]] == [False, False]
    again, same = ModelDrafter(model, 64).draft_distributions(prompt, 5, params, form)  # as after a lost connection
    assert again == ids
    assert [distribution.weights.tolist() for distribution in same] == [
        distribution.weights.tolist() for distribution in distributions
    ]
    assert drafter.draft_distributions(prompt, 0, params, form) == ([], [])


def test_a_guess_brings_the_distribution_of_a_guess(make_model):
    form = DistributionFormat(97, retained=20, probability_bits=8)
    ids, distributions = PromptLookupDrafter().draft_distributions([1, 2, 3, 1, 2], 2, SamplingParams(1.0), form)
    assert ids == [3, 1]
    assert [distribution.weight(token) for distribution, token in zip(distributions, ids, strict=True)] == [
        form.total
    ] * 2
    assert NoDrafter().draft_distributions([1, 2], 4, SamplingParams(1.0), form) == ([], [])


@pytest.mark.parametrize("distilled", [False, True])
def test_a_drafter_runs_where_it_is_told(tiny_folder, tmp_path, processor, distilled):
    name = tiny_folder
    if distilled:
        model = load_model(tiny_folder)
        card = DrafterCard(tiny_folder, fingerprint(load_model(tiny_folder, "bfloat16")), (0,), 100, "int8")
        save_drafter(carve(model, (0,), torch.arange(100)), card, tmp_path)
        name = str(tmp_path)
    source = load_draft_source(name, tiny_folder, processor)
    assert source.model.device.type == processor
    drafter = source.drafter(64)
    for params in (GREEDY, SamplingParams(1.0, seed=3)):
        drafted = drafter.draft([4, 8, 15, 16], 6, params)
        assert len(drafted) == 6
        assert drafter.draft([4, 8, 15, 16, *drafted[:2]], 4, params) == drafted[2:]


def test_a_place_that_is_not_there_or_does_not_fit_is_one_sentence(tiny_folder):
    for name, place, part in (
        (tiny_folder, "cuda:99", "no device 'cuda:99' here"),
        (tiny_folder, "warp", "no device 'warp' here"),
        ("q5", "cuda:0", "rounded for a CPU"),
        ("lookup", "cuda:0", "runs no model"),
    ):
        with pytest.raises(InputError, match=part):
            load_draft_source(name, tiny_folder, place)
