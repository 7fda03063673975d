"""vLLM under the engine's protocol does what the embedded verifier does, step by step."""

import random
import shutil

import pytest
import torch

from multispin.errors import InputError
from multispin.models import decode_alone, load_model
from multispin.models.vllm_engine import CPU_BLOCK_TOKENS, VllmEngine, decode_by_vllm
from multispin.profiling import measure_latency
from multispin.speculation import (
    DistributionFormat,
    Evidence,
    Feed,
    Offer,
    Outcome,
    Rejection,
    Rule,
    SamplingParams,
    SlotsTakenError,
    draft_token,
    resolve_down,
    resolve_up,
    truncate,
)
from multispin.speculation.conformance import check_engine

SLOTS, LENGTH, DRAFT = 3, 96, 8  # of the engines in conftest.py
GREEDY = SamplingParams()
# vLLM's state is the process's: where one engine follows another, their workers need processes of their own.
EXTRA = {"enforce_eager": True, "distributed_executor_backend": "mp"}
SAMPLING = {
    "greedy": GREEDY,
    "coupled": SamplingParams(0.9, seed=77),
    "coupled-truncated": SamplingParams(1.3, top_k=20, top_p=0.9, seed=78),
    "biased": SamplingParams(logit_bias=((65, 4.0), (66, -100.0)), withheld=(67, 68), withheld_until=40),
}


@pytest.mark.conformance
def test_both_engines_keep_what_the_interface_promises(engine):
    check_engine(engine)


class Text:
    """One text that both engines are asked to write, with guesses that are right now and then."""

    def __init__(self, rng, vocabulary, expected, prompt, params):
        self.rng, self.vocabulary, self.params = rng, vocabulary, params
        self.expected, self.prompt, self.committed = expected, prompt, list(prompt)

    def feed(self, slot, cached, limit):
        left = len(self.committed) - 1 - cached
        if left > 0 and self.rng.random() < 0.5:
            chunk = self.committed[cached : cached + min(left, self.rng.randint(1, 40))]
            return Feed(slot, cached, chunk, None)
        written = len(self.committed) - len(self.prompt)
        right = self.expected[written : written + self.rng.randint(0, DRAFT)]
        wrong = [self.rng.randrange(self.vocabulary) for _ in range(self.rng.randint(0, 2))]
        draft = [*right, *wrong][: min(DRAFT, limit - written - 1)] if self.rng.random() < 0.8 else []
        return Feed(slot, cached, [*self.committed[cached:], *draft], self.params, context=left)

    @property
    def generated(self):
        return self.committed[len(self.prompt) :]


@pytest.mark.parametrize("sampling", sorted(SAMPLING))
def test_ragged_drafts_joins_leaves_and_moves_end_as_they_do_in_the_embedded_verifier(
    model, vllm_engine, embedded_engine, sampling
):
    params, limit, rng = SAMPLING[sampling], 30, random.Random(5)
    vocabulary = embedded_engine.vocabulary_size
    assert vllm_engine.vocabulary_size == vocabulary
    prompts = [[rng.randrange(vocabulary) for _ in range(n)] for n in (2, 5, 33, 34, 60, 20)]
    alone = [decode_alone(model, prompt, params, limit) for prompt in prompts]
    waiting = [Text(rng, vocabulary, text, prompt, params) for prompt, text in zip(prompts, alone, strict=True)]
    everybody, running, accepted, empty, joined = list(waiting), {}, 0, 0, []
    while waiting or running:
        while waiting and len(running) < SLOTS and rng.random() < 0.6:
            slot = vllm_engine.open()
            assert embedded_engine.open() == slot
            running[slot] = waiting.pop()
        for slot in list(running):
            if rng.random() < 0.05:  # lose the slot and go on in another one, as after a lost edge
                text = running.pop(slot)
                vllm_engine.close(slot)
                embedded_engine.close(slot)
                slot = vllm_engine.open()
                assert embedded_engine.open() == slot
                running[slot] = text
        feeds = [
            text.feed(slot, embedded_engine.cached(slot), limit) for slot, text in running.items() if rng.random() < 0.8
        ]
        found, wanted = vllm_engine.verify(feeds), embedded_engine.verify(feeds)
        assert found == wanted
        for feed, outcome in zip(feeds, found, strict=True):
            if outcome is not None:
                text = running[feed.slot]
                text.committed += [*feed.draft[: outcome.accepted], outcome.next_token]
                for engine in (vllm_engine, embedded_engine):
                    engine.commit(feed.slot, len(text.committed) - 1)
                accepted += outcome.accepted
                empty += not feed.draft
                joined += [len(feed.draft)] if feed.context else []
            assert vllm_engine.cached(feed.slot) == embedded_engine.cached(feed.slot)
        for slot, text in list(running.items()):
            if len(text.generated) >= limit:
                vllm_engine.close(slot)
                embedded_engine.close(slot)
                del running[slot]
    assert [text.generated[:limit] for text in everybody] == alone
    assert accepted > 50  # the drafts mattered
    assert empty > 3  # and so did rounds without one
    assert min(joined) == 0 < max(joined)  # behind the end of a prompt too


def test_a_commit_of_less_than_was_accepted_goes_on_from_there(model, vllm_engine, embedded_engine):
    prompt = [7, 8, 9, 10, 11]
    text = decode_alone(model, prompt, GREEDY, 12)
    for engine in (vllm_engine, embedded_engine):
        slot = engine.open()
        engine.verify([Feed(slot, 0, prompt[:-1], None)])
        assert engine.verify([Feed(slot, 4, [prompt[-1], *text[:6]], GREEDY)]) == [Outcome(6, text[6])]
        engine.commit(slot, 4 + 3)  # only two of the six are kept
        assert engine.cached(slot) == 7
        assert engine.verify([Feed(slot, 7, [text[2], text[3], text[4], 0], GREEDY)]) == [Outcome(2, text[5])]
        engine.close(slot)


def test_a_feed_may_start_before_what_is_cached(model, engine):
    prompt = list(range(20, 60))
    text = decode_alone(model, prompt, GREEDY, 4)
    other = decode_alone(model, [*prompt[:30], 3], GREEDY, 4)
    slot = engine.open()
    engine.verify([Feed(slot, 0, prompt[:-1], None)])
    assert engine.verify([Feed(slot, 39, [prompt[-1], *text[:2]], GREEDY)]) == [Outcome(2, text[2])]
    assert engine.verify([Feed(slot, 30, [3, *other[:1]], GREEDY)]) == [Outcome(1, other[1])]
    assert engine.verify([Feed(slot, 0, prompt[:35], None)]) == [None]
    assert engine.cached(slot) == 35


def test_a_text_may_grow_to_the_full_length(model, engine):
    prompt = [5] * (LENGTH - 12)
    text = decode_alone(model, prompt, GREEDY, 12)
    slot = engine.open()
    engine.verify([Feed(slot, 0, prompt[:-1], None)])
    assert engine.verify([Feed(slot, len(prompt) - 1, [5, *text[:8]], GREEDY)]) == [Outcome(8, text[8])]
    engine.commit(slot, len(prompt) + 8)
    assert engine.verify([Feed(slot, len(prompt) + 8, [text[8], *text[9:11]], GREEDY)]) == [Outcome(2, text[11])]
    engine.commit(slot, len(prompt) + 11)
    assert engine.cached(slot) == LENGTH - 1


@pytest.mark.parametrize("length", [0, DRAFT])
def test_a_prompt_and_its_draft_may_fill_a_slot(model, engine, length):
    prompt = [5] * (LENGTH - length)
    text = decode_alone(model, prompt, GREEDY, length + 1)
    slot = engine.open()
    feed = Feed(slot, 0, [*prompt, *text[:length]], GREEDY, context=len(prompt) - 1)
    assert engine.verify([feed]) == [Outcome(length, text[length])]
    assert engine.cached(slot) == LENGTH
    engine.commit(slot, LENGTH - 1)
    assert engine.verify([Feed(slot, LENGTH - 1, [feed.tokens[-1]], GREEDY)]) == [Outcome(0, text[length])]


def test_a_slot_that_is_closed_while_others_go_on_leaves_no_trace(model, engine):
    prompt = [1, 2, 3]
    text = decode_alone(model, prompt, GREEDY, 6)
    stays, goes = engine.open(), engine.open()
    engine.verify([Feed(stays, 0, prompt[:-1], None), Feed(goes, 0, [9, 9], None)])
    engine.verify([Feed(stays, 2, [3, *text[:2]], GREEDY), Feed(goes, 2, [9, 4, 4], GREEDY)])
    engine.commit(stays, 5)
    engine.close(goes)
    with pytest.raises(ValueError, match="not open"):
        engine.close(goes)
    assert engine.verify([Feed(stays, 5, [text[2], *text[3:5]], GREEDY)]) == [Outcome(2, text[5])]
    assert engine.open() == goes
    assert engine.cached(goes) == 0


def test_a_prompt_of_one_token_is_answered(model, engine):
    text = decode_alone(model, [42], GREEDY, 3)
    slot = engine.open()
    (outcome,) = engine.verify([Feed(slot, 0, [42, *text[:1]], GREEDY)])
    written = [*text[: outcome.accepted], outcome.next_token]
    assert written == text[: len(written)]
    engine.commit(slot, len(written))
    assert engine.verify([Feed(slot, len(written), [written[-1]], GREEDY)]) == [Outcome(0, text[len(written)])]


def test_slots_run_out_with_an_answer_and_come_back(engine):
    slots = [engine.open() for _ in range(SLOTS)]
    with pytest.raises(SlotsTakenError, match=f"all {SLOTS} slots"):
        engine.open()
    engine.close(slots[0])
    assert engine.open() == slots[0]


@pytest.mark.parametrize(
    "feed",
    [
        Feed(0, 1, [1], GREEDY),  # a gap
        Feed(0, 0, [], GREEDY),
        Feed(0, 0, [1] * (LENGTH + 1), None),  # too long
        Feed(0, 0, [10**6], GREEDY),  # no such token
        Feed(1, 0, [1], GREEDY),  # not open
        Feed(0, 0, [1, 2], GREEDY, context=2),  # nothing newest
        Feed(0, 0, [1, 2], None, context=1),  # no prompt has a context
    ],
)
def test_feeds_that_make_no_sense_are_refused(engine, feed):
    assert engine.open() == 0
    with pytest.raises(ValueError, match=r"slot|token|cached"):
        engine.verify([feed])


@pytest.mark.parametrize("context", [0, 3])
def test_a_draft_that_is_longer_than_vllm_was_told_is_refused(vllm_engine, context):
    slot = vllm_engine.open()
    with pytest.raises(ValueError, match=f"a draft of {DRAFT + 1} is longer than {DRAFT}"):
        vllm_engine.verify([Feed(slot, 0, [1] * (context + 2 + DRAFT), GREEDY, context=context)])


@pytest.mark.parametrize("read", [39, 20, 0])  # of the prompt, before the first draft comes
@pytest.mark.parametrize("rule", [Rule.REJECTION, Rule.REJECTION_UP, Rule.REJECTION_DOWN])
def test_rejection_rules_find_what_they_find_in_the_embedded_verifier(model, vllm_engine, embedded_engine, rule, read):
    params, form = SamplingParams(0.8, seed=4), DistributionFormat(embedded_engine.vocabulary_size, 40, 12)
    committed, noise = list(range(50, 90)), torch.Generator().manual_seed(0)
    slots = vllm_engine.open(), embedded_engine.open()
    for engine, slot in zip((vllm_engine, embedded_engine), slots, strict=True):
        engine.verify([Feed(slot, 0, committed[:read], None)] if read else [])
    kinds = set()
    for length in (4, 0, 3, 5, 4, 6, 2, 5):
        base, drafted, distributions = len(committed), [], []
        for position in range(base, base + length):  # a drafter that is the target, blurred
            with torch.inference_mode():
                logits = model(torch.tensor([[*committed, *drafted]])).logits[0, -1]
            distributions.append(truncate(logits + 1.5 * torch.randn(logits.shape, generator=noise), params, form))
            drafted.append(draft_token(distributions[-1], params.seed, base, position))
        weights = [distribution.weight(token) for distribution, token in zip(distributions, drafted, strict=True)]
        whole = rule is Rule.REJECTION
        evidence = Evidence(
            rule, form, distributions=tuple(distributions) if whole else (), weights=() if whole else tuple(weights)
        )
        tokens = [*committed[read:], *drafted]
        found, wanted = (
            engine.verify([Feed(slot, read, tokens, params, evidence, context=base - 1 - read)])[0]
            for engine, slot in zip((vllm_engine, embedded_engine), slots, strict=True)
        )
        assert type(found) is type(wanted)
        assert found.accepted == wanted.accepted
        kinds.add(type(found))
        tokens = [found, wanted]
        for i, finding in enumerate(tokens):  # what the device makes of it
            if isinstance(finding, Outcome):
                tokens[i] = finding.next_token
            elif isinstance(finding, Rejection):
                tokens[i] = resolve_up(finding, distributions[finding.accepted]).next_token
            else:
                tokens[i] = resolve_down(finding, distributions[finding.accepted], params.seed)
        assert tokens[0] == tokens[1]
        committed += [*drafted[: found.accepted], tokens[0]]
        read = len(committed) - 1
        for engine, slot in zip((vllm_engine, embedded_engine), slots, strict=True):
            engine.commit(slot, read)
    expected = {Rule.REJECTION: set(), Rule.REJECTION_UP: {Rejection}, Rule.REJECTION_DOWN: {Offer}}[rule]
    assert kinds == {Outcome} | expected


def test_with_drafts_vllm_writes_what_it_writes_alone(model, folder, vllm_engine):
    """The reference has no drafts and none of our scheduler, one request at a time, and ends at a stop id."""
    rng = random.Random(2)
    requests = [
        ([3, 1, 4, 1, 5], GREEDY),
        (list(range(100, 140)), SAMPLING["coupled"]),
        ([6] * 33, SAMPLING["biased"]),
    ]
    stop = decode_alone(model, *requests[1], 24)[10]
    alone = decode_by_vllm(folder, requests, 24, {stop}, options=EXTRA)
    assert alone == [decode_alone(model, prompt, params, 24, {stop}) for prompt, params in requests]
    assert [len(text) for text in alone] != [24] * 3
    texts = {
        vllm_engine.open(): Text(rng, vllm_engine.vocabulary_size, text, prompt, params)
        for text, (prompt, params) in zip(alone, requests, strict=True)
    }
    going = dict(texts)
    while going:
        feeds = [text.feed(slot, vllm_engine.cached(slot), len(text.expected)) for slot, text in going.items()]
        for feed, outcome in zip(feeds, vllm_engine.verify(feeds), strict=True):
            if outcome is not None:
                text = texts[feed.slot]
                text.committed += [*feed.draft[: outcome.accepted], outcome.next_token]
                vllm_engine.commit(feed.slot, len(text.committed) - 1)
        going = {slot: text for slot, text in going.items() if len(text.generated) < len(text.expected)}
    assert [text.generated for text in texts.values()] == alone


def test_a_text_that_comes_back_is_served_by_the_prefix_cache(model, vllm_engine, monkeypatch):
    """A device that resumes elsewhere, or a slot that was lost: all but a block and what is new is there already."""
    prompt = random.Random(8).choices(range(vllm_engine.vocabulary_size), k=70)
    text = decode_alone(model, prompt, GREEDY, 7)
    slot = vllm_engine.open()
    vllm_engine.verify([Feed(slot, 0, prompt[:-1], None)])
    assert vllm_engine.verify([Feed(slot, 69, [prompt[-1], *text[:3]], GREEDY)]) == [Outcome(3, text[3])]
    vllm_engine.close(slot)
    from multispin.models.vllm_internals import DraftScheduler

    read, schedule = [], DraftScheduler.schedule

    def counting(*args, **kwargs):
        output = schedule(*args, **kwargs)
        read.append(output.total_num_scheduled_tokens)
        return output

    monkeypatch.setattr(DraftScheduler, "schedule", counting)
    committed, slot = [*prompt, *text[:4]], vllm_engine.open()
    assert vllm_engine.verify([Feed(slot, 0, committed[:-1], None)]) == [None]
    assert sum(read) <= CPU_BLOCK_TOKENS < len(committed)
    read.clear()
    draft = [committed[-1], *text[4:6]]
    assert vllm_engine.verify([Feed(slot, len(committed) - 1, draft, GREEDY)]) == [Outcome(2, text[6])]
    assert sum(read) <= CPU_BLOCK_TOKENS + len(draft)


@pytest.fixture
def steps(monkeypatch):
    """Grows by one with each step of vLLM."""
    from vllm.v1.engine.llm_engine import LLMEngine

    counted, step = [], LLMEngine.step
    monkeypatch.setattr(LLMEngine, "step", lambda llm: counted.append(1) or step(llm))
    return counted


@pytest.mark.parametrize("params", [GREEDY, SAMPLING["coupled"]], ids=["greedy", "coupled"])
@pytest.mark.parametrize(("length", "most"), [(0, 1), (4, 2)])
def test_a_draft_behind_its_prompt_costs_one_step_more_and_no_draft_none(
    model, vllm_engine, steps, params, length, most
):
    other, prompt = [3, 1, 4], random.Random(9).choices(range(vllm_engine.vocabulary_size), k=70)
    first, text = decode_alone(model, other, params, 9), decode_alone(model, prompt, params, 9)
    stays, comes = vllm_engine.open(), vllm_engine.open()
    vllm_engine.verify([Feed(stays, 0, [*other, *first[:2]], params, context=2), Feed(comes, 0, prompt[:40], None)])
    vllm_engine.commit(stays, 5)
    steps.clear()
    wrong = [(text[length] + 1) % vllm_engine.vocabulary_size] * bool(length)
    feeds = [
        Feed(stays, 5, first[2:6], params),
        Feed(comes, 40, [*prompt[40:], *text[:length], *wrong], params, context=29),
    ]
    assert vllm_engine.verify(feeds) == [Outcome(3, first[6]), Outcome(length, text[length])]
    assert len(steps) == most
    vllm_engine.commit(comes, 70 + length)
    steps.clear()
    feeds = [Feed(comes, 70 + length, text[length : length + 3], params)]
    assert vllm_engine.verify(feeds) == [Outcome(2, text[length + 3])]
    assert len(steps) == 1  # its request went on


@pytest.mark.parametrize("params", [GREEDY, SAMPLING["coupled"]], ids=["greedy", "coupled"])
def test_a_text_that_comes_back_with_a_draft_in_one_feed_is_its_own(model, vllm_engine, params):
    """A device that resumes after its slot was lost, beside one that begins with the same prompt."""
    prompt = random.Random(10).choices(range(vllm_engine.vocabulary_size), k=66)
    text = decode_alone(model, prompt, params, 12)
    slot = vllm_engine.open()
    assert vllm_engine.verify([Feed(slot, 0, [*prompt, *text[:3]], params, context=65)]) == [Outcome(3, text[3])]
    vllm_engine.close(slot)
    committed, slots = [*prompt, *text[:4]], (vllm_engine.open(), vllm_engine.open())
    feeds = [
        Feed(slots[0], 0, [*committed, *text[4:7], (text[7] + 1) % vllm_engine.vocabulary_size], params, context=69),
        Feed(slots[1], 0, prompt, params, context=65),
    ]
    assert vllm_engine.verify(feeds) == [Outcome(3, text[7]), Outcome(0, text[0])]
    vllm_engine.commit(slots[0], 50)  # and is cut back
    again = Feed(slots[0], 50, [*prompt[50:], *text[:2]], params, context=15)
    assert vllm_engine.verify([again]) == [Outcome(2, text[2])]


def test_prompts_that_do_not_fit_a_step_are_read_in_several(model, folder, steps):
    """And without a prefix cache, so that all of what was read before is read again."""
    options = {**EXTRA, "max_num_batched_tokens": 64, "enable_prefix_caching": False}
    engine = VllmEngine.load(folder, SLOTS, LENGTH, max_draft=DRAFT, options=options)
    try:
        for params in (GREEDY, SAMPLING["coupled"]):
            prompts = [random.Random(seed).choices(range(engine.vocabulary_size), k=80) for seed in range(SLOTS)]
            texts = [decode_alone(model, prompt, params, 6) for prompt in prompts]
            slots = [engine.open() for _ in prompts]
            engine.verify([Feed(slots[0], 0, prompts[0][:60], None), Feed(slots[1], 0, prompts[1][:30], None)])
            steps.clear()
            feeds = [
                Feed(slots[0], 60, [*prompts[0][60:], *texts[0][:4]], params, context=19),
                Feed(slots[1], 30, [*prompts[1][30:], *texts[1][:2], 0, 0], params, context=49),
                Feed(slots[2], 0, prompts[2], params, context=79),
            ]
            found = engine.verify(feeds)
            assert found == [Outcome(4, texts[0][4]), Outcome(2, texts[1][2]), Outcome(0, texts[2][0])]
            assert len(steps) > 3
            for slot in slots:
                engine.close(slot)
    finally:
        engine.shutdown()


def test_logits_that_are_no_numbers_are_one_sentence(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_model(folder)
    weights.model.norm.weight.data.fill_(float("nan"))
    weights.save_pretrained(broken)
    engine = VllmEngine.load(str(broken), 1, LENGTH, options=EXTRA)
    try:
        slot = engine.open()
        with pytest.raises(InputError, match=r"^the model's logits are not finite numbers: .*\(try float32\)$"):
            engine.verify([Feed(slot, 0, [5], GREEDY)])
    finally:
        engine.shutdown()


def test_what_profile_times_is_one_step_of_vllm(vllm_engine, steps):
    """A text that vLLM had to read anew would cost a step more, which rounds do not bring."""
    points = measure_latency(vllm_engine, [(1, 0), (3, 4)], 40, 2, lambda: float(len(steps)), lambda *_: None)
    assert [point.seconds for point in points] == [1.0, 1.0]


def test_two_workers_that_share_the_weights_find_the_same(model, folder):
    """Tensor parallelism: the rule is applied in each worker, on the same logits."""
    engine = VllmEngine.load(folder, 2, LENGTH, max_draft=4, options={"enforce_eager": True, "tensor_parallel_size": 2})
    try:
        for params in (GREEDY, SAMPLING["coupled"]):
            prompt = [9, 8, 7]
            text = decode_alone(model, prompt, params, 9)
            slot = engine.open()
            engine.verify([Feed(slot, 0, prompt[:-1], None)])
            assert engine.verify([Feed(slot, 2, [7, *text[:3], 0], params)]) == [Outcome(3, text[3])]
            engine.commit(slot, 6)
            assert engine.verify([Feed(slot, 6, [text[3], *text[4:8]], params)]) == [Outcome(4, text[8])]
            engine.close(slot)
    finally:
        engine.shutdown()


def test_a_cache_that_does_not_hold_all_slots_is_refused_with_what_to_do(folder):
    with pytest.raises(InputError, match=r"room for .* and not for 4: write fewer or shorter texts"):
        VllmEngine.load(folder, 4, 400, options={**EXTRA, "kv_cache_memory_bytes": 2**20})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots": 0}, "slots = 0"),
        ({"max_length": 512}, "max_length = 512"),
        ({"dtype": "int3"}, "dtype"),
        ({"options": {"no_such_thing": 1}}, "no_such_thing"),
        ({"options": {"scheduler_cls": "x"}}, "sets it itself"),
        ({"reference": "/no/such/folder"}, "no model"),
    ],
)
def test_what_cannot_be_is_refused_before_vllm_starts(folder, changes, words):
    with pytest.raises(InputError, match=words):
        VllmEngine.load(**{"reference": folder, "slots": 2, "max_length": 64, **changes})


def test_a_vllm_whose_inside_is_not_known_is_refused(folder, monkeypatch):
    import vllm

    from multispin.models.vllm_internals import check_vllm_version

    check_vllm_version("0.32.9")
    for version in ("0.31.2", "0.33.0", "1.0"):
        words = rf"{version} is installed.*0\.32.*pip install 'vllm==0\.32"
        with pytest.raises(InputError, match=words):
            check_vllm_version(version)
        monkeypatch.setattr(vllm, "__version__", version)
        with pytest.raises(InputError, match=words):
            VllmEngine.load(folder, 1, LENGTH)
        with pytest.raises(InputError, match=words):
            decode_by_vllm(folder, [([1], GREEDY)], 1)
