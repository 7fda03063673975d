"""The corpus: what the target writes, with its hidden states, shard by shard."""

import numpy as np
import pytest
import torch

from multispin.data import load_prompts
from multispin.distillation.corpus import Shard, Writer, write_corpus
from multispin.distillation.evaluation import held_out_texts
from multispin.distillation.prompts import training_prompts
from multispin.errors import InputError
from multispin.models import load_model, load_tokenizer
from multispin.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def target(tiny_folder):
    return load_model(tiny_folder), load_tokenizer(tiny_folder)


def writer(target_folder, **options):
    return Writer(load_model(target_folder), load_tokenizer(target_folder), 12, **options)


def test_prompts_are_filled_in_and_share_no_text_with_the_held_out_ones():
    prompts = training_prompts(400, np.random.default_rng(0))
    assert prompts == training_prompts(400, np.random.default_rng(0))
    assert not any("{" in text or "}" in text for text in prompts)
    assert len(set(prompts)) > 380
    assert not set(prompts) & {prompt.text for prompt in load_prompts()}


def test_states_are_the_targets_own_and_lead_to_its_tokens(tiny_folder, target):
    model, _ = target
    shard = writer(tiny_folder).shard(seed=3, number=0)
    for row in (0, 4, 8):  # greedy ones
        begin, end = int(shard.begins[row]), int(shard.ends[row])
        tokens = shard.tokens[row : row + 1, :end]
        with torch.no_grad():
            found = model.model(tokens).last_hidden_state[0, : end - 1]
            following = model(tokens).logits[0, begin - 1 : end - 1].argmax(-1)
        assert torch.allclose(shard.states[row, : end - 1].float(), found, atol=0.03, rtol=0.01)
        assert torch.equal(following, tokens[0, begin:])
    assert (shard.ends - shard.begins).max() <= 12


def test_sampled_text_follows_the_distribution(tiny_folder, target):
    """First tokens after one prompt at T = 1: chi-square over 512 draws; false alarm 1e-4."""
    from scipy.stats import chisquare

    model, tokenizer = target
    ids = tokenizer.encode_chat("Which?")
    pen = Writer(load_model(tiny_folder), tokenizer, 1)
    first = []
    for k in range(4):
        shard = pen.write([ids] * 128, [1.0] * 128, torch.Generator().manual_seed(k))
        first += shard.tokens[:, len(ids)].tolist()
    with torch.no_grad():
        distribution = model(torch.tensor([ids])).logits[0, -1].softmax(-1).double().numpy()
    distribution /= distribution.sum()
    common = np.argsort(-distribution)[:8]
    seen = np.array([first.count(int(token)) for token in common])
    seen, expected = (
        np.append(seen, 512 - seen.sum()),
        512 * np.append(distribution[common], 1 - distribution[common].sum()),
    )
    assert chisquare(seen, expected).pvalue > 1e-4


@pytest.mark.long
def test_a_corpus_goes_on_where_it_stopped_and_depends_on_its_seed_alone(tiny_folder, tmp_path):
    whole = [path for path, _ in write_corpus(writer(tiny_folder), tmp_path / "whole", 5, 4000)]
    assert len(whole) >= 3
    part = tmp_path / "part"
    for count, _ in enumerate(write_corpus(writer(tiny_folder), part, 5, 4000), start=1):
        if count == 2:
            break  # killed
    kept = (part / whole[0].name).stat().st_mtime_ns
    again = [path for path, _ in write_corpus(writer(tiny_folder), part, 5, 4000)]
    assert (part / whole[0].name).stat().st_mtime_ns == kept
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(Shard.load(one).tokens, Shard.load(other).tokens)
        assert torch.equal(Shard.load(one).states, Shard.load(other).states)
    assert not list(part.glob("*.part"))


def test_a_corpus_is_gone_on_with_only_from_what_it_began_with(tiny_folder, tmp_path):
    next(write_corpus(writer(tiny_folder), tmp_path, 5, 1))
    next(write_corpus(writer(tiny_folder), tmp_path, 5, 1))
    for pen, seed, texts, reason in (
        (writer(tiny_folder), 6, [], "another seed"),
        (writer(tiny_folder), 5, [[1, 2, 3]], "with other texts: choose"),
        (writer(tiny_folder, prompts=["one"]), 6, [], "other prompts and another seed"),
    ):
        with pytest.raises(InputError, match=reason):
            next(write_corpus(pen, tmp_path, seed, 1, texts))
    pen = writer(tiny_folder)
    pen.identity["target"] = "0123456789abcdef"
    with pytest.raises(InputError, match="another target"):
        next(write_corpus(pen, tmp_path, 5, 1))
    (tmp_path / "corpus.json").unlink()
    with pytest.raises(InputError, match="does not say"):
        next(write_corpus(writer(tiny_folder), tmp_path, 5, 1))


def test_given_prompts_and_texts_are_used(tiny_folder, tmp_path, target):
    _, tokenizer = target
    text = tokenizer.encode_chat("A text of somebody's own.")
    pen = writer(tiny_folder, prompts=["only this"])
    shards = [Shard.load(path) for path, _ in write_corpus(pen, tmp_path, 0, len(text), [text])]
    assert len(shards) == 2  # the given text has one token less than is asked for
    assert shards[0].tokens[0, : len(text)].tolist() == text
    assert shards[0].generated == len(text) - 1
    prompt = tokenizer.encode_chat("only this")
    assert all(shards[1].tokens[row, : len(prompt)].tolist() == prompt for row in range(len(shards[1].ends)))


def test_a_batch_is_told_of_while_it_is_written(tiny_folder, monkeypatch):
    """A batch takes minutes on a small machine: whoever waits sees that it goes on, and with what."""
    monkeypatch.setattr(Tokenizer, "chat_frame", lambda _: ([5, 6], [7]))  # as a model that chats has
    told, doing = [], []

    def tell(drawn, text):
        told.append(drawn)
        doing.append(text)

    shard = writer(tiny_folder, tell=tell).shard(seed=3, number=0)
    invented = [text for text in doing if "invents 64 prompts" in text]
    assert len(set(invented)) == len(invented) > 20  # a pass each, until all prompts have ended
    assert invented[0].endswith(": 0 of 64 tokens")
    assert "the target has read 64 of 128 texts" in doing
    answers = [drawn for drawn, text in zip(told, doing, strict=True) if not text]
    assert told == [0] * (len(told) - len(answers)) + answers
    assert answers == sorted(answers)
    assert len(set(answers)) == 12  # one after each token of an answer but the last
    assert max(answers) < int((shard.ends - shard.begins).sum())


def test_answers_to_held_out_prompts_are_written_once(tiny_folder, tmp_path, monkeypatch):
    """They take as long as a batch: a run that was stopped does not write them again."""
    tokenizer, prompts = load_tokenizer(tiny_folder), load_prompts()[:2]
    first = held_out_texts(writer(tiny_folder), tokenizer, prompts, 1.0, 1, tmp_path)
    monkeypatch.setattr(Writer, "write", lambda *_: pytest.fail("written again"))
    again = held_out_texts(writer(tiny_folder), tokenizer, prompts, 1.0, 1, tmp_path)
    assert torch.equal(first.tokens, again.tokens)
    for other in ({"temperature": 0.0}, {"seed": 2}, {"prompts": prompts[:1]}):
        with pytest.raises(pytest.fail.Exception):
            held_out_texts(
                writer(tiny_folder),
                tokenizer,
                **{"prompts": prompts, "temperature": 1.0, "seed": 1} | other,
                folder=tmp_path,
            )
