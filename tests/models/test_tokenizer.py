"""The tokenizer, read without transformers, says what transformers says."""

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from multispin.errors import InputError
from multispin.models import Tokenizer, load_tokenizer
from multispin.models.template import TemplateProcess, render
from multispin.models.tokenizer import MAX_END_IDS
from multispin.protocol.limits import MAX_STOP_IDS

TEXTS = ("", "Why is the sky blue?", "naïve café — 漢字 🦊\n\n\ttabs", "<|end|> and <|start|>")
PLAIN = """{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + eos_token }}
{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
MARKED = """{% for message in messages %}{% if loop.index > 1 %}{% break %}{% endif %}
{% generation %}{{ message | tojson }}{% endgeneration %}
{% endfor %}{{ strftime_now('%Y') | length }}{% if tools is none %}!{% endif %}"""
AS_JSON = """{{ messages | tojson(ensure_ascii=False) }}{{ messages | tojson(ensure_ascii=True, indent=2) }}
{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}{{ messages | tojson(true) }}"""


def save(folder, template=None, **settings):
    """A folder with a tokenizer of bytes, and a config."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "additional_special_tokens": ["<|start|>"]}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special, **settings)
    made.chat_template = template
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": [256, 7]}))
    return str(folder)


def assert_same(reference, theirs):
    ours = load_tokenizer(reference)
    assert ours.size == len(theirs)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, special_tokens=False) == ids
        assert ours.encode(text) == theirs(text).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        if theirs.chat_template:
            message = [{"role": "user", "content": text}]
            said = theirs.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            assert ours.encode_chat(text) == theirs(said, add_special_tokens=False).input_ids
        else:
            assert ours.encode_chat(text) == theirs(text).input_ids
    return ours


@pytest.mark.parametrize("template", [None, PLAIN, MARKED, AS_JSON])
def test_it_says_what_transformers_says(tmp_path, template):
    reference = save(tmp_path, template)
    ours = assert_same(reference, AutoTokenizer.from_pretrained(reference))
    assert ours.stop_ids == (256, 7)
    if template == PLAIN:
        before, after = ours.chat_frame()
        assert before + ours.encode("x", special_tokens=False) + after == ours.encode_chat("x")
    if template is None:
        assert ours.chat_frame() is None


BEGIN = [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
BEGINNING = {
    "type": "TemplateProcessing",
    "single": BEGIN,
    "pair": [*BEGIN, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [256], "tokens": ["<|end|>"]}},
}
FURTHER = {"content": "<|x|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    ("of_tokenizer", "of_settings"),
    [
        ({"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}}, {}),
        ({"padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                      "pad_type_id": 0, "pad_token": "!"}}, {}),
        ({"post_processor": BEGINNING}, {}),
        ({}, {"added_tokens_decoder": {"258": {**FURTHER, "single_word": False}}}),
    ],
    ids=["cut", "padded", "begun", "further token"],
)  # fmt: skip
def test_a_whole_text_is_read_as_the_settings_say(tmp_path, of_tokenizer, of_settings):
    """The library `tokenizers` alone would cut texts and fill them up."""
    reference = save(tmp_path)
    for name, changes in (("tokenizer.json", of_tokenizer), ("tokenizer_config.json", of_settings)):
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    theirs, ours = AutoTokenizer.from_pretrained(reference), load_tokenizer(reference)
    for text in (*TEXTS, "x" * 40, "a<|x|>b"):
        assert ours.encode(text) == theirs(text).input_ids
    assert ours.size == len(theirs)


def test_special_tokens_of_older_files_reach_the_template(tmp_path):
    reference = save(tmp_path, "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings = {key: value for key, value in settings.items() if key not in ("eos_token", "added_tokens_decoder")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {"bos_token": {**FURTHER, "content": "<|start|>"}, "eos_token": "<|end|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    ours, theirs = load_tokenizer(reference), AutoTokenizer.from_pretrained(reference)
    assert ours.special_tokens["bos_token"] == theirs.bos_token == "<|start|>"
    assert ours.encode_chat("x") == theirs.apply_chat_template([{"role": "user", "content": "x"}], return_dict=False)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|x|>": 258}))
    ours, theirs = load_tokenizer(reference), AutoTokenizer.from_pretrained(reference)
    assert ours.encode("a<|x|>b") == theirs("a<|x|>b").input_ids == [64, 258, 65]
    (tmp_path / "special_tokens_map.json").write_text("{")
    with pytest.raises(InputError, match=r"special_tokens_map\.json"):
        load_tokenizer(reference)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model["vocab"].update(zzz=4_000_000_000), "over the limit"),
        (lambda model: model.update(vocab={}), "has no token"),
        (lambda model: model.update(vocab={"[PAD0]": 0}), "has no token"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path, change, said):
    reference, path = save(tmp_path), tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"], document["model"]["merges"] = [], []
    change(document["model"])
    path.write_text(json.dumps(document))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"added_tokens_decoder": {}}))
    with pytest.raises(InputError, match=said):
        load_tokenizer(reference)


def test_long_texts_are_read_and_written_alike_and_let_other_threads_run(tmp_path):
    """The library lets Python's other threads run in its calls for batches alone."""
    tokenizer = load_tokenizer(save(tmp_path))
    text = "naïve café " * 1000
    ids = tokenizer.backend.encode(text).ids
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids) == text

    class Watched:
        encode = decode = None  # not to be called

        def encode_batch_fast(self, texts, add_special_tokens):
            return tokenizer.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)

        def decode_batch(self, lists, skip_special_tokens):
            return tokenizer.backend.decode_batch(lists, skip_special_tokens=skip_special_tokens)

    watched = Tokenizer(Watched())
    assert watched.encode(text) == ids
    assert watched.decode(ids) == text


def test_a_text_at_which_the_tokenizer_gives_up_is_one_sentence(tmp_path):
    """The library panics, which is no `Exception`."""
    reference, path = save(tmp_path), tmp_path / "tokenizer.json"
    bomb = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": bomb}))
    with pytest.raises(InputError, match="cannot split this text"):
        load_tokenizer(reference).encode("a" * 30 + "!")


def test_ids_that_the_model_lacks_can_be_neither_read_nor_written(tmp_path, caplog):
    reference = save(tmp_path)
    assert load_tokenizer(reference).size == 258
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 256, "eos_token_id": 256}))
    tokenizer = load_tokenizer(reference)
    assert (tokenizer.size, tokenizer.stop_ids) == (256, ())
    assert max(tokenizer.tokens) == 255
    assert "ends texts with the id 256, which the model lacks" in caplog.text


def test_a_chat_of_many_messages_and_further_variables(tmp_path):
    reference = save(tmp_path, "{% if polite %}Please. {% endif %}" + PLAIN)
    ours, theirs = load_tokenizer(reference), AutoTokenizer.from_pretrained(reference)
    chat = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    for more in ({}, {"polite": True}):
        said = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **more)
        assert ours.encode_messages(chat, more) == theirs(said, add_special_tokens=False).input_ids
    ours.encode_messages(chat, {"self": "a name that Python functions like"})
    for name in ("messages", "tools", "eos_token"):
        with pytest.raises(InputError, match=f"reserved name '{name}'"):
            ours.encode_messages(chat, {name: "x"})
    with pytest.raises(InputError, match="no chat template"):
        load_tokenizer(save(tmp_path / "plain")).encode_messages(chat)


def test_older_places_of_a_template_are_read(tmp_path):
    reference = save(tmp_path, PLAIN)
    expected = load_tokenizer(reference).encode_chat("hello")
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["eos_token"] = {"content": "<|end|>", "special": True}
    for template in (PLAIN, [{"name": "tools", "template": "no"}, {"name": "default", "template": PLAIN}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        assert load_tokenizer(reference).encode_chat("hello") == expected


def test_a_fingerprint_is_that_of_the_vocabulary(tmp_path):
    one, other = (load_tokenizer(save(tmp_path / name)) for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    assert len(one.fingerprint) == 16
    changed = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    changed["added_tokens"][0]["content"] = "<|fin|>"
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(changed))
    assert load_tokenizer(str(tmp_path / "other")).fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("tokenizer.json", "{", "the tokenizer.json of"),
        ("tokenizer_config.json", "[", "the tokenizer_config.json of"),
        ("config.json", "[]", "holds no JSON object"),
        ("config.json", "\x00", "the config.json of"),
        ("chat_template.jinja", "{% if %}", "chat template is damaged"),
        ("chat_template.jinja", "{{ raise_exception('no users') }}", "refuses these messages: no users"),
        ("chat_template.jinja", "{{ messages.append(1) }}", "refuses these messages"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, file, text, reason):
    reference = save(tmp_path, PLAIN)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=reason) as caught:
        load_tokenizer(reference).encode_chat("hello")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def hasty():
    """A process for templates that has no patience."""
    process = TemplateProcess(most_s=1.0)
    yield process
    process.close()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ 'a'.center(10**11) }}",
        "{{ 'a' | center(10**11) }}",
        "{{ ([0] * 10**10) | length }}",
        "{{ messages[0].content | indent(10**10, true) }}",
        "{% set x = namespace(s='ab') %}{% for i in range(60) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ ('a' * 10**5) | replace('a', 'b' * 10**6) }}",
        "{{ 'a' * 10**7 }}",
        "{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}",
    ],
)
def test_a_template_can_take_neither_time_nor_memory(hasty, template):
    variables = {"messages": [{"role": "user", "content": "hello"}], "eos_token": ""}
    with pytest.raises(InputError, match="the model's chat template") as caught:
        render(template, variables, hasty)
    assert "\n" not in str(caught.value)
    assert "hello" in render(PLAIN, variables, hasty)  # and the next text is written as ever


@pytest.mark.embedded
def test_the_embedded_targets_tokenizer_is_that_of_transformers():
    from multispin.models import resolve

    ours = assert_same("embedded", AutoTokenizer.from_pretrained(resolve("embedded")))
    assert ours.chat_frame() is not None


def test_it_loads_neither_torch_nor_transformers(tiny_folder):
    look = (
        "import sys; from multispin.models import load_drafter; load_drafter('lookup', sys.argv[1], 64);"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", look, tiny_folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_more_ends_of_a_text_than_a_request_may_name_are_refused_at_once(tmp_path):
    reference, settings = save(tmp_path), tmp_path / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": list(range(100, 100 + MAX_END_IDS - 2))}))  # beside those of `save`
    assert len(load_tokenizer(reference).stop_ids) == MAX_END_IDS == MAX_STOP_IDS
    settings.write_text(json.dumps({"eos_token_id": list(range(100, 100 + MAX_END_IDS - 1))}))
    with pytest.raises(InputError, match="names 17 tokens that end a text, over the limit of 16"):
        load_tokenizer(reference)


def test_settings_of_texts_that_are_not_used_are_said_to_be_so(tmp_path, caplog):
    reference = save(tmp_path)
    plain = {"min_length": 0, "num_beams": 1, "repetition_penalty": 1.0, "suppress_tokens": None, "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(plain))
    load_tokenizer(reference)
    assert "generation_config.json" not in caplog.text
    used = {"stop_strings": ["</s>"], "repetition_penalty": 1.05, "forced_bos_token_id": 0, "suppress_tokens": [5]}
    (tmp_path / "generation_config.json").write_text(json.dumps({**plain, **used}))
    load_tokenizer(reference)
    named = "stop_strings, suppress_tokens, forced_bos_token_id, repetition_penalty"
    assert f"sets {named} in its generation_config.json, not used here" in caplog.text


def test_the_process_of_templates_is_closed_with_the_program():
    """Python complains, where it is asked to, about a process that still runs when the object for it goes."""
    code = "from multispin.models.template import render; print(render('{{ a }}', {'a': 'hello'}))"
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "hello\n"
    assert "ResourceWarning" not in done.stderr
