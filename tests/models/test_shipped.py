"""The drafters that come with the package, on the target that they were made from."""

import sys
import time

import pytest

from multispin.data import load_prompts
from multispin.errors import InputError
from multispin.models import Verifier, decode_together, load_drafter, load_model, load_tokenizer
from multispin.models.distilled import fingerprint
from multispin.models.drafter_card import read_card
from multispin.models.drafter_name import SHIPPED, check_drafter_name, shipped_folder
from multispin.profiling import follow
from multispin.speculation import SamplingParams

pytestmark = pytest.mark.embedded
MOST_BYTES = 25 * 10**6
TOKENS, LONGEST = 48, 400
NEAR = 0.1
"""How far the rate over four texts may be from the card's, a mean over 48: they differed by 0.06 at most."""


@pytest.fixture(scope="module")
def written():
    """A text of the embedded target for each family of prompts, greedy: (prompt length, ids)."""
    target, tokenizer = Verifier(load_model("embedded"), 4, LONGEST), load_tokenizer("embedded")
    prompts = [tokenizer.encode_chat(prompt.text) for prompt in load_prompts()[:4]]
    requests = [(prompt, SamplingParams()) for prompt in prompts]
    texts, _ = decode_together(target, requests, TOKENS, tokenizer.stop_ids, time.monotonic)
    return target, [(len(prompt), prompt + text) for prompt, text in zip(prompts, texts, strict=True)]


def test_cards_name_this_target_and_files_are_small():
    marks = {read_card(shipped_folder(name)).fingerprint for name in SHIPPED}
    assert marks == {fingerprint(load_model("embedded", "bfloat16"))}
    layers = []
    for name in SHIPPED:
        card = read_card(shipped_folder(name))
        assert card.target == "embedded"
        assert set(card.results) == {"all", "code", "arithmetic", "dialogue", "reading"}
        assert (shipped_folder(name) / "weights.safetensors").stat().st_size < MOST_BYTES
        assert "/" not in card.made["command"]  # nobody's folders
        layers.append(len(card.layers))
    assert layers == sorted(layers)


@pytest.mark.parametrize("name", SHIPPED)
def test_drafts_are_accepted_as_often_as_the_card_says(written, name):
    target, texts = written
    drafter, _ = load_drafter(name, "embedded", LONGEST)
    accepts = "".join(
        follow(drafter, target, text, begin, SamplingParams(), "p", "t").trace.accepts for begin, text in texts
    )
    assert len(accepts) > 3 * TOKENS
    card = read_card(shipped_folder(name)).results["all"]["greedy"]["acceptance_rate"]
    assert accepts.count("1") / len(accepts) == pytest.approx(card, abs=NEAR)


def test_they_are_for_no_other_target(tiny_folder):
    with pytest.raises(InputError, match="not from this target"):
        load_drafter("small", tiny_folder, 64)


def test_a_missing_package_of_drafters_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "multispin_drafters", None)
    with pytest.raises(InputError, match=r"pip install \./packages/multispin-drafters"):
        check_drafter_name("small")
