"""Tools: what is refused, the grammar of calls, and calls read from a text in pieces of any size."""

import json

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.gateway.formats import (
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    FormatError,
    bounded_schema,
    grammar_of_schema,
    held_schema,
    schema_of_format,
)
from multispin.gateway.tools import MAX_TOOLS, CallReader, plain_messages, read_tools
from multispin.models import TextGrammars, load_tokenizer
from multispin.speculation.grammar import allowed

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "time", "description": "now"}},
]
ALLOWED = {"type": "allowed_tools"}
ONLY_TIME = {"type": "function", "function": {"name": "time"}}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": CITY}}
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def fits(tiny_folder):
    """Whether a whole text is one that a grammar allows."""
    tokenizer = load_tokenizer(tiny_folder)
    grammars = TextGrammars(tokenizer)

    def check(grammar, text):
        matcher, ids = grammars.matcher(grammar), [*tokenizer.encode(text), tokenizer.stop_ids[0]]
        return all(allowed(matcher.mask(ids[:k]), tokenizer.size)[token] for k, token in enumerate(ids))

    return check


@pytest.mark.parametrize(
    ("choice", "parallel", "right", "wrong"),
    [
        ("required", None, [ROME, NOW, f"{ROME}\n{NOW}"], ["Hi", f"Hi {ROME}", ROME[:-5], "", f"{ROME}\n"]),
        ("required", False, [ROME, NOW], [f"{ROME}\n{NOW}"]),
        ({"type": "function", "function": {"name": "time"}}, None, [NOW], [ROME, f"{NOW}\n{NOW}", "Hi"]),
        (
            ALLOWED | {"allowed_tools": {"mode": "required", "tools": [ONLY_TIME]}},
            None,
            [NOW, f"{NOW}\n{NOW}"],
            [ROME, "Hi"],
        ),
        (
            ALLOWED | {"allowed_tools": {"mode": "auto", "tools": [ONLY_TIME]}},
            False,
            ["Hi", NOW],
            [ROME, f"{NOW}\n{NOW}"],
        ),
        (ALLOWED | {"allowed_tools": {"mode": "auto", "tools": TOOLS}}, None, ["Hi", f"{NOW}\n{ROME}"], []),
        ("auto", None, ["Hi", "a < b", f"Hi {ROME}\n{NOW}", f"{ROME} and more", ""], ["<tool_call>", ROME[:-5]]),
        ("auto", False, ["Hi", ROME, f"Hi {ROME}"], [f"{ROME}\n{NOW}", f"{ROME} and more"]),
        (None, None, ["Hi", ROME], [ROME.replace("weather", "wether"), ROME.replace("city", "town")]),
    ],
)
def test_the_grammar_of_calls(fits, choice, parallel, right, wrong):
    grammar = read_tools(TOOLS, choice, parallel).grammar()
    for text in right:
        assert fits(grammar, text), text
    for text in wrong:
        assert not fits(grammar, text), text


@pytest.mark.parametrize("reference", ["#", "#/$defs/node"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_references_of_a_tools_schema_mean_that_schema(fits, reference, choice):
    node = {
        "type": "object",
        "properties": {"v": {"type": "integer"}, "next": {"$ref": reference}},
        "required": ["v"],
        "additionalProperties": False,
    }
    tool = {"name": "walk", "parameters": {**node, "$defs": {"node": node}}}
    grammar = read_tools([TOOLS[0], {"type": "function", "function": tool}], choice, None).grammar()
    call = '<tool_call>\n{"name": "walk", "arguments": {"v": 1, "next": %s}}\n</tool_call>'
    assert fits(grammar, call % '{"v": 2, "next": {"v": 3}}')
    assert not fits(grammar, call % '{"name": "walk", "arguments": {"v": 2}}')
    assert not fits(grammar, call % '{"w": 2}')


@given(st.lists(st.integers(1, 12), min_size=1), st.sampled_from(["", "Well, ", "a < b <tool_ "]))
def test_calls_are_read_from_pieces_of_any_size(sizes, before):
    tricky = json.dumps({"city": 'R"o}m{e\\', "x": [1, {"y": "]"}]})
    text = before + ROME + "\n" + ROME.replace('{"city": "Rome"}', tricky) + "\nbye"
    reader, plain, calls, place = CallReader(), "", {}, 0
    while place < len(text):
        size = sizes[place % len(sizes)]
        new, parts = reader.push(text[place : place + size])
        plain, place = plain + new, place + size
        for part in parts:
            name, arguments = calls.get(part.number, ("", ""))
            calls[part.number] = (name + part.name, arguments + part.arguments)
    plain += reader.end()
    assert plain == f"{before}bye"
    assert calls == {0: ("weather", '{"city": "Rome"}'), 1: ("weather", tricky)}


@pytest.mark.parametrize("text", ["<tool_call>" + "x" * 500, "<tool_c"])
def test_what_is_no_call_is_text(text):
    reader = CallReader()
    plain, parts = reader.push(text)
    assert plain + reader.end() == text
    assert not parts


@pytest.mark.parametrize("cut", [len("<tool_call>"), len('<tool_call>\n{"name": "wea')])
def test_a_call_that_is_cut_before_its_arguments_leaves_no_text(cut):
    reader = CallReader()
    plain, parts = reader.push(f"{NOW}\n{ROME[:cut]}")
    assert plain + reader.end() == ""
    assert "".join(part.name for part in parts) == "time"
    assert not reader.cut


@pytest.mark.parametrize(
    ("tools", "choice", "sentence"),
    [
        ([{"type": "web_search"}], None, 'only "function"'),
        ([{"type": "function"}], None, "a tool has no name: give it under"),
        ([{"type": "function", "name": "f"}], None, "a tool has no name: give it under"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "is wrong: use 1"),
        ([{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}], None, 'type "object"'),
        ([*TOOLS, TOOLS[0]], None, "same name"),
        (TOOLS[:1] * (MAX_TOOLS + 1), None, "at most"),
        (TOOLS, {"type": "function", "function": {"name": "no"}}, "name one of the tools"),
        (TOOLS, "sometimes", "name one of the tools"),
        (TOOLS, ALLOWED, "name one of the tools"),
        (TOOLS, ALLOWED | {"allowed_tools": {"mode": "auto", "tools": []}}, "name one of the tools"),
        (TOOLS, ALLOWED | {"allowed_tools": {"mode": "auto", "tools": ["time"]}}, "name one of the tools"),
        (TOOLS, ALLOWED | {"allowed_tools": {"mode": "sometimes", "tools": [ONLY_TIME]}}, "name one of the tools"),
        (None, "required", "tools is empty"),
        ("x", None, "must be a list"),
    ],
)
def test_wrong_tools_are_refused_with_the_reason(tools, choice, sentence):
    with pytest.raises(FormatError, match=sentence):
        read_tools(tools, choice, None)


def test_without_tools_or_with_none_nothing_is_held_to_a_form():
    assert read_tools(None, None, None) is None
    assert read_tools([], "auto", None) is None
    assert read_tools(TOOLS, "none", None) is None


def test_schemas_are_bounded():
    held_schema({"type": "object"})
    deep = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        deep = {"items": deep}
    with pytest.raises(FormatError, match="levels deep"):
        held_schema(deep)
    with pytest.raises(FormatError, match="bytes"):
        held_schema({"enum": ["x" * MAX_SCHEMA_BYTES]})
    with pytest.raises(FormatError, match="must be an object"):
        held_schema([])


HELD = [
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2000-02-29"', '"2023-02-28"', '"2023-01-31"'],
     ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"']),
    ({"type": "string", "format": "time"}, ['"10:20:59Z"', '"10:20:30.5+01:00"'],
     ['"10:20:60Z"', '"10:20:60.5-10:20"']),
    ({"type": "string", "format": "date-time"}, ['"2024-02-29T10:20:59Z"'],
     ['"2023-02-29T10:20:59Z"', '"2024-01-01T10:20:60Z"', '"2024-01-01T10:20:60.1+10:20"']),
    ({"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}, ["null"], ['"2023-02-29"']),
    ({"$ref": "#/$defs/d", "$defs": {"d": {"type": "string", "format": "date"}}}, ['"2024-02-29"'], ['"2023-02-29"']),
    ({"enum": [{"format": "date"}]}, ['{"format":"date"}'], ["{}"]),
    ({"type": "string", "format": "path", "maxLength": 2}, ['"/a"'], ['"/ab"', "1"]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, ['{"a": 1, "b": "x", "é": [1]}', '{"b": "x"}'],
     ['{"a": "x"}', '{"a": 1, "\\u0061": "x"}', '{"\\u0061": "x"}']),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "patternProperties": {"^b": {"type": "null"}}},
     ['{"a": 1, "b": null, "c": "x"}'], ['{"b": 1}']),
    ({"type": "integer", "maximum": 2**63 - 1}, [str(2**63 - 1)], [str(2**63)]),
    ({"type": "object", "required": ["a"], "minProperties": 2, "properties": {"a": {}}}, ['{"a": 1, "b": 2}'],
     ['{"a": 1}']),
]  # fmt: skip


@pytest.mark.parametrize(("inner", "right", "wrong"), HELD)
def test_what_the_library_holds_loosely_is_held_as_the_schema_says(fits, inner, right, wrong):
    grammar = grammar_of_schema(schema_of_format({"type": "json_schema", "json_schema": {"schema": inner}}))
    for text in right:
        assert fits(grammar, text), text
    for text in wrong:
        assert not fits(grammar, text), text


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, r"\$schema = .*draft-03"),
        ({"items": {"$schema": "https://example.org/my"}}, r"\$schema = "),
        ({"type": "integer", "minimum": 10**20, "maximum": 10**21}, "minimum = 1000.* enforced exactly"),
        ({"type": "integer", "maximum": 2**53 + 3}, "maximum = 9007199254740995 .* enforced exactly"),
        ({"type": "integer", "exclusiveMaximum": 2**63 - 1}, "exclusiveMaximum = .* enforced exactly"),
        ({"type": "integer", "multipleOf": -2}, "multipleOf = -2 .* greater than 0"),
        ({"type": "number", "multipleOf": 0.0}, "multipleOf = 0.0 .* greater than 0"),
        ({"type": "object", "minProperties": 2}, "minProperties = 2 is not supported"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_cannot_be_held_is_refused_by_name(inner, sentence, inside):
    inner = {"type": "object", "properties": {"x": inner}} if inside else inner
    with pytest.raises(FormatError, match=sentence):
        schema_of_format({"type": "json_schema", "json_schema": {"schema": inner}})
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"x": inner}}}
    with pytest.raises(FormatError, match=sentence):
        read_tools([{"type": "function", "function": tool}], None, None)


@pytest.mark.parametrize(
    ("inner", "sentence"),
    [
        ({"type": "string", "pattern": "^(?=a)b$"}, r"the pattern \^\(\?=a\)b\$ cannot be used: look-around"),
        ({"type": "string", "pattern": "(["}, "the pattern .* cannot be used: unclosed"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf constraints are not supported$"),
        ({"uniqueItems": True, "type": "array"}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "string", "format": "iri-reference"}, "iri-reference"),
    ],
)
def test_the_librarys_refusals_name_what_is_at_fault(tiny_folder, inner, sentence):
    grammars = TextGrammars(load_tokenizer(tiny_folder))
    with pytest.raises(InputError, match=sentence):
        grammars.matcher(grammar_of_schema(bounded_schema(inner)))


def test_a_grammar_that_grows_too_complex_in_a_text_says_so(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder)
    matcher = TextGrammars(tokenizer).matcher(
        grammar_of_schema(bounded_schema({"type": "string", "pattern": "^(a{1000}){1000}$"}))
    )

    def write():
        for token in tokenizer.encode('"' + "a" * 50):
            matcher.mask([])
            matcher.advance([token])

    with pytest.raises(InputError, match="became too complex"):
        write()


def test_formats_become_grammars(fits):
    def grammar(given):
        return grammar_of_schema(schema_of_format(given))

    assert grammar(None) == grammar({"type": "text"}) == ""
    assert fits(grammar({"type": "json_object"}), '{"a": [1, "x"]}')
    assert not fits(grammar({"type": "json_object"}), "[1]")
    assert fits(grammar(FORM), '{\n  "city": "Rome"\n}')
    assert not fits(grammar(FORM), "{" + " " * 40 + '"city": "Rome"}')  # blanks are bounded
    assert not llguidance.LLMatcher.validate_grammar(grammar(FORM))
    for wrong in ({}, {"type": "xml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}):
        with pytest.raises(FormatError):
            schema_of_format(wrong)


@pytest.mark.parametrize(
    ("choice", "parallel", "right", "wrong"),
    [
        (
            "auto",
            None,
            ['{"city": "Rome"}', ROME, f"{ROME}\n{NOW}"],
            ["Hi", '{"town": "Rome"}', f'{ROME}{{"city": "a"}}'],
        ),
        ("auto", False, ['{"city": "<tool_call>"}', NOW], [f"{ROME}\n{NOW}"]),
        ("required", None, [ROME], ['{"city": "Rome"}']),
    ],
)
def test_with_a_format_an_answer_is_calls_or_a_document(fits, choice, parallel, right, wrong):
    grammar = read_tools(TOOLS, choice, parallel, form=schema_of_format(FORM)).grammar()
    for text in right:
        assert fits(grammar, text), text
    for text in wrong:
        assert not fits(grammar, text), text


def test_a_template_without_tools_is_told_of_them_in_plain_messages():
    call = {"type": "function", "function": {"name": "time", "arguments": {}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
    ]
    system, user, assistant, result = plain_messages(messages, read_tools(TOOLS, None, None))
    assert system["content"].startswith("Be brief.\n\nYou may call")
    assert '"name": "weather"' in system["content"]
    assert user == messages[1]
    assert assistant == {"role": "assistant", "content": NOW}
    assert result == {"role": "user", "content": "<tool_response>\nnoon\n</tool_response>"}
    assert plain_messages(messages[:2], None) == messages[:2]
