"""What two tokenizers must share, where texts end, and chat templates that go wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.normalizers import Replace

from multispin.errors import InputError
from multispin.models import (
    decode_alone,
    known_positions,
    load_draft_source,
    load_model,
    load_tokenizer,
    load_verifier,
)
from multispin.models.template import TemplateProcess
from multispin.models.token_table import token_table
from multispin.models.tokenizer import Tokenizer
from multispin.speculation import Feed, SamplingParams


def test_padding_of_the_logits_is_no_vocabulary(make_folder):
    few, many = make_folder("few"), make_folder("many", padding=64)
    assert load_tokenizer(few).size == load_tokenizer(many).size == 259
    assert load_tokenizer(few).fingerprint == load_tokenizer(many).fingerprint
    for draft, target in ((few, many), (many, few)):
        drafter = load_draft_source(draft, target).drafter(64)
        drafted = drafter.draft([5, 6, 7], 30, SamplingParams(1.0, seed=3))
        assert max(drafted) < 259
    verifier = load_verifier(many, 1)
    assert (verifier.vocabulary_size, verifier.max_length) == (259, 256)
    slot = verifier.open()
    verifier.verify([Feed(slot, 0, [5, 6], None)])
    (found,) = verifier.verify([Feed(slot, 2, [7], SamplingParams(5.0, seed=1))])
    alone = decode_alone(load_model(many), [5, 6, 7], SamplingParams(5.0, seed=1), 20, vocabulary_size=259)
    assert found.next_token == alone[0]
    assert max(alone) < 259


def test_a_space_of_sentencepiece_is_a_space_on_both_sides():
    """Files for llama.cpp write the tokens that a user defined with spaces, and all others with ▁."""

    def tokenizer(*words):
        """The last words are the user's."""
        vocabulary = {word: index for index, word in enumerate(("<unk>", "▁", "a", "▁a", *words))}
        backend = Backend(BPE(vocabulary, [("▁", "a")], unk_token="<unk>"))
        backend.normalizer, backend.decoder = Replace(" ", "▁"), decoders.Replace("▁", " ")
        backend.add_tokens([AddedToken(word, normalized=False) for word in words])
        return Tokenizer(backend)

    model, file = tokenizer("▁▁", "<b>"), tokenizer("  ", "<b>")
    assert model.fingerprint == file.fingerprint
    assert model.difference(file) is None
    assert [model.token_bytes(index) for index in range(1, 6)] == [b" ", b"a", b" a", b"  ", b"<b>"]
    assert token_table(model)[2 + len("<unk>") :] == b"\0\1 \0\1a\0\2 a\0\2  \0\3<b>"


def test_a_block_that_is_no_space_stays_one(make_folder):
    """In a vocabulary of bytes ▁ is text."""
    tokenizer = load_tokenizer(make_folder("m", words=("Ġa", "th", "âĸ", "âĸģ")))
    assert tokenizer.token_bytes(tokenizer.backend.token_to_id("âĸģ")) == "▁".encode()


def test_special_tokens_that_one_side_lacks_or_names_otherwise_leave_no_text_and_do_not_matter(make_folder):
    plain = load_tokenizer(make_folder("plain"))
    more = load_tokenizer(make_folder("more", special=("<|pad|>", "<|image|>")))
    other = load_tokenizer(make_folder("other", special=("[unused0]",)))
    assert plain.fingerprint == more.fingerprint == other.fingerprint
    assert more.difference(plain) is None
    assert more.size == plain.size + 2
    assert more.decode([5, 259, 260, 6]) == plain.decode([5, 6])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"words": ("Ġa", "th", "Ġthe")}, None),  # an id more: all that both have is the same
        ({"end": "<|stop|>"}, r"id 258 is '<\|stop\|>' here and '<\|end\|>' there"),
    ],
)
def test_the_first_id_that_means_another_text_is_named(make_folder, changes, part):
    folders = make_folder("own", **changes), make_folder("theirs")
    own, theirs = map(load_tokenizer, folders)
    if part is None:
        assert "id 258" in own.difference(theirs)
        return
    assert own.fingerprint != theirs.fingerprint
    with pytest.raises(InputError, match=part):
        load_draft_source(*folders)


def test_tokens_are_compared_as_bytes(make_folder):
    tokens = load_tokenizer(make_folder("m")).tokens
    assert tokens[256] == b" a"
    assert tokens[257] == b"th"
    assert sorted(tokens[index] for index in range(256)) == [bytes([byte]) for byte in range(256)]


def test_end_ids_that_only_the_generation_settings_name_end_texts(make_folder):
    folder = make_folder("m", special=("<|eot|>",))
    path = Path(folder) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [258, 259]}))
    assert load_tokenizer(folder).stop_ids == (258, 259)
    path.write_text("{")
    with pytest.raises(InputError, match="generation_config"):
        load_tokenizer(folder)
    path.unlink()
    assert load_tokenizer(folder).stop_ids == (258,)


def test_a_model_without_an_end_id_says_so(make_folder, caplog):
    folder = make_folder("m", end=None, eos_token_id=None)
    assert load_tokenizer(folder).stop_ids == ()
    assert "no token that ends a text" in caplog.text


def test_a_template_that_raises_is_one_sentence(make_folder):
    template = "{{ raise_exception('no system message\nplease') }}"
    tokenizer = load_tokenizer(make_folder("m", template=template))
    with pytest.raises(InputError, match="no system message") as caught:
        tokenizer.encode_chat("Hello")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{{ messages[9]['content'] }}", "{% if %}", "{{ ''.__class__.__mro__ }}"])
def test_a_template_that_makes_no_sense_is_one_sentence(make_folder, template):
    tokenizer = load_tokenizer(make_folder("m", template=template))
    with pytest.raises(InputError, match="chat template"):
        tokenizer.encode_chat("Hello")


def test_a_template_that_writes_half_a_character_is_one_sentence(make_folder):
    tokenizer = load_tokenizer(make_folder("m", template="{{ '\\ud800' }}{{ messages[0].content }}"))
    with pytest.raises(InputError, match="halves of characters"):
        tokenizer.encode_chat("Hello")


def test_a_template_of_the_settings_that_is_no_text_is_refused(make_folder):
    folder = make_folder("m", template="x")
    path = Path(folder) / "tokenizer_config.json"
    (Path(folder) / "chat_template.jinja").unlink(missing_ok=True)
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"chat_template": [{"name": "default", "template": [5]}]})
    )
    with pytest.raises(InputError, match=r"tokenizer_config.json of .* is damaged"):
        load_tokenizer(folder)


def test_a_template_that_does_not_end_is_stopped(make_folder):
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% set k = i * j %}{% endfor %}{% endfor %}"
    hasty = TemplateProcess(most_s=1.0)
    tokenizer = replace(load_tokenizer(make_folder("m", template=loop)), templates=hasty)
    try:
        with pytest.raises(InputError, match="does not end within 1 s"):
            tokenizer.encode_chat("Hello")
    finally:
        hasty.close()


def test_a_conversation_and_the_templates_own_variables_reach_the_template(make_folder):
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if thinking %}think{% endif %}"
    tokenizer = load_tokenizer(make_folder("m", template=template))
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.decode(tokenizer.encode_messages(messages)) == "system:Be kind.;user:Hi;"
    assert tokenizer.decode(tokenizer.encode_messages(messages, {"thinking": True})).endswith("think")
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(make_folder("plain")).encode_messages(messages)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"vocab_size": 1' + "0" * 9000 + "}"),
        ("config.json", '{"eos_token_id": "<|end|>"}'),
        ("config.json", '{"eos_token_id": [true]}'),
        ("config.json", '{"text_config": 3, "eos_token_id": -1}'),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", '{"eos_token": 3}'),
        ("tokenizer_config.json", '{"eos_token": {"content": []}}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "other"}, 3]}'),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
        ("tokenizer_config.json", "\ufeff{"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", "{}"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(make_folder, name, content):
    folder = make_folder("m")
    (Path(folder) / name).write_text(content)
    with pytest.raises(InputError) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope_parameters": {"rope_type": ["llama3"], "rope_theta": 1e4}},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": "x"}},
        {"max_position_embeddings": "many"},
        {"layer_types": 5},
    ],
    ids=str,
)
def test_a_configuration_with_values_of_other_types_is_one_sentence(make_folder, wrong):
    folder = make_folder("m")
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    for load in (load_model, known_positions):
        try:
            load(folder)
        except InputError as refusal:
            assert "\n" not in str(refusal)
        else:
            assert load is known_positions  # which reads less
