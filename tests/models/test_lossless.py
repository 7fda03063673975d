"""Greedy and coupled output equals plain target decoding, whatever is drafted and whoever comes and goes."""

import random
from dataclasses import replace

import pytest
from tests.slots import free_slots

from multispin.models import ModelDrafter, Verifier, decode_alone, round_weights
from multispin.models.quantised import whole_weights
from multispin.speculation import Feed, PromptLookupDrafter, SamplingParams

SAMPLING = {
    "greedy": SamplingParams(),
    "coupled": SamplingParams(0.9, seed=77),
    "coupled-truncated": SamplingParams(1.3, top_k=20, top_p=0.9, seed=78),
    "greedy-penalties": SamplingParams(presence_penalty=1.0, frequency_penalty=0.7, repetition_penalty=1.2),
    "coupled-penalties": SamplingParams(1.0, min_p=0.02, frequency_penalty=1.5, repetition_penalty=0.8, seed=79),
}


class RandomDrafter:
    """Guesses nonsense, of random length."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def prepare(self, committed):
        pass

    def draft(self, committed, length, params):
        return [self.rng.randrange(97) for _ in range(self.rng.randint(0, length))]


class Text:
    """One session of the naive driver below."""

    def __init__(self, verifier, prompt, params, drafter):
        self.verifier, self.drafter = verifier, drafter
        self.prompt, self.committed = prompt, list(prompt)
        self.params = replace(params, prompt_tokens=len(prompt))
        self.slot = verifier.open()

    def feed(self, rng, limit):
        left = len(self.committed) - 1 - self.verifier.cached(self.slot)
        if left > 0:  # prompt, or everything after a resume in another slot
            start = self.verifier.cached(self.slot)
            return Feed(self.slot, start, self.committed[start : start + min(left, rng.randint(1, 8))], None), []
        room = limit - (len(self.committed) - len(self.prompt)) - 1
        drafted = self.drafter.draft(self.committed, min(rng.randint(0, 7), room), self.params)
        newest = len(self.committed) - 1
        return Feed(self.slot, newest, [self.committed[-1], *drafted], self.params, None, [*self.committed]), drafted

    def settle(self, drafted, outcome):
        if outcome is not None:
            self.committed += [*drafted[: outcome.accepted], outcome.next_token]
            self.verifier.commit(self.slot, len(self.committed) - 1)

    def move(self):
        """Lose the slot and go on in another one, as after a lost edge."""
        self.verifier.close(self.slot)
        self.slot = self.verifier.open()


@pytest.mark.parametrize("numbers", ["float32", pytest.param("int8", marks=pytest.mark.long)])
def test_texts_equal_plain_decoding_for_random_drafts_joins_leaves_and_resumes(make_model, family, numbers, processor):
    """Every drafter with every way to sample, all of them in the same passes.

    What is done with logits is the same for every family: one of them is sampled in all ways. Drafters know nothing of
    a target's numbers: with whole ones, two of them draft, one that is nearly always wrong and one that is often right.
    """
    if numbers == "int8" and processor != "cpu":
        pytest.skip("whole numbers are for a CPU")
    model, limit = make_model(family).to(processor), 24
    every = numbers == "float32" and family == "llama"
    ways = [SAMPLING[name] for name in (SAMPLING if every else ("greedy", "coupled-penalties"))]
    if numbers == "int8":
        model = whole_weights(model)
    drafters = [
        RandomDrafter(1),
        PromptLookupDrafter(),
        ModelDrafter(round_weights(make_model(family), 5), 128),
        ModelDrafter(make_model(family, seed=9), 128),
    ]
    if numbers == "int8":
        drafters = [drafters[0], drafters[2]]
    rng = random.Random(5)
    wanted = [
        ([rng.randrange(97) for _ in range(rng.randint(1, 20))], params, drafter)
        for params in ways
        for drafter in drafters
    ]
    expected = [decode_alone(model, prompt, params, limit) for prompt, params, _ in wanted]
    verifier = Verifier(model, slots=4, max_length=64)
    waiting, running, finished = rng.sample(range(len(wanted)), len(wanted)), {}, {}
    accepted = dict.fromkeys(range(len(ways)), 0)
    while len(finished) < len(wanted):
        while waiting and len(running) < 4 and rng.random() < 0.5:
            index = waiting.pop()
            running[index] = Text(verifier, *wanted[index])
        for text in running.values():
            if rng.random() < 0.05:
                text.move()
        present = [(index, text) for index, text in running.items() if rng.random() < 0.8]
        feeds = [text.feed(rng, limit) for _, text in present]
        outcomes = verifier.verify([feed for feed, _ in feeds])
        for (index, text), (_, drafted), outcome in zip(present, feeds, outcomes, strict=True):
            text.settle(drafted, outcome)
            accepted[index // len(drafters)] += outcome.accepted if outcome else 0
        for index, text in list(running.items()):
            if len(text.committed) - len(text.prompt) >= limit:
                finished[index] = text.committed[len(text.prompt) :][:limit]
                verifier.close(running.pop(index).slot)
    assert [finished[index] for index in range(len(wanted))] == expected
    assert min(accepted.values()) > 5  # the drafts mattered, however tokens were drawn


def test_decoding_alone_stops_at_a_stop_id_and_keeps_it(make_model):
    model = make_model("llama")
    text = decode_alone(model, [1, 2, 3], SamplingParams(1.0, seed=1), 30)
    stop = text[10]
    first = text.index(stop)
    assert decode_alone(model, [1, 2, 3], SamplingParams(1.0, seed=1), 30, {stop}) == text[: first + 1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_target_writes_many_texts_in_one_batch_as_it_writes_each_alone(make_model, temperature):
    from multispin.models import decode_alone, decode_together

    prompts = [[5, 6, 7], [9], [11, 12, 13, 14]]
    requests = [(prompt, SamplingParams(temperature, seed=k)) for k, prompt in enumerate(prompts)]
    alone = [decode_alone(make_model("llama"), prompt, params, 15, {3}) for prompt, params in requests]
    engine = Verifier(make_model("llama"), 3, 32)
    ticks = iter((10.0, 12.5))
    assert decode_together(engine, requests, 15, {3}, lambda: next(ticks)) == (alone, 2.5)
    assert free_slots(engine) == 3
