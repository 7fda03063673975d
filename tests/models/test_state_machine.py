"""Any order of open, feed, verify, roll back, resume and close gives what a model without a cache gives."""

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.slots import free_slots
from transformers import AutoModelForCausalLM, LlamaConfig

from multispin.models import Verifier
from multispin.speculation import Feed, SamplingParams, SlotsTakenError, accept_matching

SLOTS, LENGTH, VOCABULARY = 3, 40, 31
TOKENS = st.integers(0, VOCABULARY - 1)


def tiny():
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


NAIVE = tiny()


def naive_next(tokens):
    """The greedy token after each prefix of `tokens`, by a full forward without a cache."""
    with torch.inference_mode():
        return NAIVE(torch.tensor([tokens]), use_cache=False).logits[0].argmax(-1).tolist()


class VerifierMachine(RuleBasedStateMachine):
    """`texts` is what the verifier must hold: per open slot, the tokens whose positions are cached."""

    @initialize()
    def start(self):
        self.verifier = Verifier(tiny(), slots=SLOTS, max_length=LENGTH)
        self.texts = {}
        self.suspended = []

    def run(self, feeds):
        outcomes = self.verifier.verify(feeds)
        for feed, outcome in zip(feeds, outcomes, strict=True):
            text = self.texts[feed.slot]
            text[feed.start :] = feed.tokens
            if feed.params is None:
                assert outcome is None
            else:
                assert outcome == accept_matching(feed.draft, naive_next(text)[feed.newest :])
                text[feed.newest + 1 + outcome.accepted :] = []
                self.verifier.commit(feed.slot, len(text))

    @rule()
    def open(self):
        if len(self.texts) == SLOTS:
            try:
                self.verifier.open()
            except SlotsTakenError:
                return
            raise AssertionError("a slot beyond the last one")
        self.texts[self.verifier.open()] = []

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), guess=st.booleans())
    def verify(self, data, guess):
        """One batch over any sessions, each with a prompt chunk or a draft; right guesses too, so that some stand."""
        feeds = []
        for slot in data.draw(st.lists(st.sampled_from(sorted(self.texts)), min_size=1, unique=True)):
            text = self.texts[slot]
            room = LENGTH - len(text)
            if room == 0:
                continue
            tokens = data.draw(st.lists(TOKENS, min_size=1, max_size=min(room, 6)))
            if guess and len(tokens) > 1:
                for i in range(1, len(tokens) - data.draw(st.integers(0, len(tokens) - 1))):
                    tokens[i] = naive_next([*text, *tokens[:i]])[-1]
            context = data.draw(st.integers(0, len(tokens) - 1))
            feeds.append(
                data.draw(
                    st.sampled_from(
                        [
                            Feed(slot, len(text), tokens, None),
                            Feed(slot, len(text), tokens, SamplingParams()),
                            Feed(slot, len(text), tokens, SamplingParams(), context=context),
                        ]
                    )
                )
            )
        self.run(feeds)

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), token=TOKENS)
    def retry_from_earlier(self, data, token):
        """A feed may start anywhere in what is cached: whatever stood behind it is forgotten."""
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        start = data.draw(st.integers(0, min(len(self.texts[slot]), LENGTH - 1)))
        self.run([Feed(slot, start, [token], SamplingParams())])

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def roll_back(self, data):
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        keep = data.draw(st.integers(0, len(self.texts[slot])))
        self.verifier.commit(slot, keep)
        del self.texts[slot][keep:]

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), keep=st.booleans())
    def close(self, data, keep):
        """Leave, or be evicted with the text kept by the device."""
        slot = data.draw(st.sampled_from(sorted(self.texts)))
        text = self.texts.pop(slot)
        self.verifier.close(slot)
        if keep and text:
            self.suspended.append(text)

    @precondition(lambda self: self.suspended and len(self.texts) < SLOTS)
    @rule()
    def resume(self):
        slot, text = self.verifier.open(), self.suspended.pop()
        self.texts[slot] = []
        self.run([Feed(slot, 0, text, None)])

    @invariant()
    def lengths_agree(self):
        if hasattr(self, "verifier"):
            assert {slot: self.verifier.cached(slot) for slot in self.texts} == {
                s: len(t) for s, t in self.texts.items()
            }
            assert free_slots(self.verifier) == SLOTS - len(self.texts)


VerifierMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # a failure is thirty steps at most; making it smaller would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestVerifier = VerifierMachine.TestCase
