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
from multispin.models import load_tokenizer
from multispin.models.template import TemplateProcess, render

TEXTS = ("", "Why is the sky blue?", "naïve café — 漢字 🦊\n\n\ttabs", "<|end|> and <|start|>")
PLAIN = """{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + eos_token }}
{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""
MARKED = """{% for message in messages %}{% if loop.index > 1 %}{% break %}{% endif %}
{% generation %}{{ message | tojson }}{% endgeneration %}
{% endfor %}{{ strftime_now('%Y') | length }}{% if tools is none %}!{% endif %}"""


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


@pytest.mark.parametrize("template", [None, PLAIN, MARKED])
def test_it_says_what_transformers_says(tmp_path, template):
    reference = save(tmp_path, template)
    ours = assert_same(reference, AutoTokenizer.from_pretrained(reference))
    assert ours.stop_ids == (256, 7)
    if template == PLAIN:
        before, after = ours.chat_frame()
        assert before + ours.encode("x", special_tokens=False) + after == ours.encode_chat("x")
    if template is None:
        assert ours.chat_frame() is None


def test_a_chat_of_many_messages_and_further_variables(tmp_path):
    reference = save(tmp_path, "{% if polite %}Please. {% endif %}" + PLAIN)
    ours, theirs = load_tokenizer(reference), AutoTokenizer.from_pretrained(reference)
    chat = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    for more in ({}, {"polite": True}):
        said = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **more)
        assert ours.encode_messages(chat, more) == theirs(said, add_special_tokens=False).input_ids
    for name in ("messages", "tools", "eos_token"):
        with pytest.raises(InputError, match=f"cannot be called '{name}'"):
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
