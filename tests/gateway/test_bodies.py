import json

import pytest

from multispin.gateway.bodies import REFUSED, BadRequestError, ChatBody, CompletionBody, read_body
from multispin.gateway.responses import LOGPROBS, ResponsesBody

TOOLS = [{"type": "function", "name": "f", "function": {"name": "f"}}]
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def chat(**fields):
    return read_body(json.dumps({**HELLO, **fields}).encode(), ChatBody)


def responses(**fields):
    return read_body(json.dumps({"input": "Hello", **fields}).encode(), ResponsesBody)


def test_a_chat_needs_only_messages():
    body = chat()
    assert body.conversation() == [{"role": "user", "content": "Hello"}]
    assert (body.choices, body.stop_strings, body.most_tokens) == (1, (), None)
    assert body.params(7).temperature == 1.0
    assert body.params(7).seed == 7


def test_fields_reach_the_sampling_parameters():
    params = chat(temperature=0.5, top_p=0.9, top_k=40, seed=3, logit_bias={"5": -100}).params(7)
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 40, 3)
    assert params.logit_bias == ((5, -100.0),)


def test_penalties_and_min_p_reach_the_sampling_parameters():
    params = chat(min_p=0.1, presence_penalty=0.5, frequency_penalty=-1, repetition_penalty=1.2).params(7)
    assert (params.min_p, params.presence_penalty, params.frequency_penalty) == (0.1, 0.5, -1.0)
    assert params.repetition_penalty == 1.2
    assert not chat(presence_penalty=0, repetition_penalty=1).params(7).remembers


def test_the_newer_name_of_the_limit_wins():
    assert chat(max_tokens=5).most_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=9).most_tokens == 9


def test_content_may_come_in_parts_of_text():
    body = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
    assert body.conversation()[0]["content"] == "ab"
    for kind in ("input_text", "output_text"):  # as the parts of Responses are called
        assert chat(messages=[{"role": "user", "content": [{"type": kind, "text": "a"}]}]).conversation()
    with pytest.raises(BadRequestError, match="image_url"):
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]).conversation()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_built_is_refused_by_name_but_its_harmless_values_are_not(name):
    for harmless in REFUSED[name]:
        chat(**{name: harmless})
    with pytest.raises(BadRequestError, match=name) as refusal:
        chat(**{name: {"something": "else"}})
    assert refusal.value.param == name


def test_log_probabilities_of_chats_need_both_fields_and_a_number_in_range():
    assert chat(logprobs=True, top_logprobs=3).params(0).logprobs == 3
    assert chat(logprobs=True).params(0).logprobs == 0
    assert chat(logprobs=False).params(0).logprobs is None
    for fields in ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21}):
        with pytest.raises(BadRequestError) as refusal:
            chat(**fields).params(0)
        assert refusal.value.param == "top_logprobs"


def test_a_negative_seed_is_a_seed_and_minus_one_is_any():
    assert chat(seed=-1).params(7).seed == 7
    assert chat(seed=-2).params(7).seed == 2**63 - 2
    assert chat(seed=-(2**63)).params(7).seed == 0
    for far in (2**63, -(2**63) - 1):
        with pytest.raises(BadRequestError, match=r"seed = .* outside −2\^63 … 2\^63 − 1"):
            chat(seed=far).params(7)


def test_a_developers_message_is_a_systems_in_the_template():
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}]
    body = chat(messages=[{"role": "developer", "content": parts}, {"role": "user", "content": "Hi"}])
    assert body.conversation()[0] == {"role": "system", "content": "Be brief"}


def test_calls_and_results_in_messages_reach_the_template():
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    body = chat(messages=[{"role": "assistant", "tool_calls": [called]}, {"role": "tool", "content": "2"}])
    first, second = body.conversation()
    assert first["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert second == {"role": "tool", "content": "2"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("truncate_prompt_tokens", 10),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
        ("return_token_ids", True),
        ("chat_template", "{{ messages }}"),
    ],
)
def test_fields_of_vllm_that_would_change_the_answer_are_refused_by_name(field, value):
    with pytest.raises(BadRequestError, match=f"{field} = .* is not supported") as refusal:
        chat(**{field: value})
    assert refusal.value.param == field
    chat(**{field: None})


def test_a_whole_number_may_have_a_point_and_a_temperature_as_good_as_0_is_0():
    body = chat(max_tokens=8.0, top_k=5.0, seed=3.0, n=2.0, stop_token_ids=[4.0, 5])
    assert body.stop_ids([]) == (4, 5)
    for prompt, found in (([1.0, 2], [1, 2]), ([[1.0, 2], [3.0]], [[1, 2], [3]])):
        assert read_body(json.dumps({"prompt": prompt}).encode(), CompletionBody).prompt == found
    assert (body.most_tokens, body.params(0).top_k, body.params(0).seed, body.choices) == (8, 5, 3, 2)
    for field, value in (
        ("stop_token_ids", [4.5]),
        ("max_tokens", 8.5),
        ("max_tokens", "8"),
        ("n", True),
        ("top_k", 1e30),
    ):
        with pytest.raises(BadRequestError) as refusal:
            chat(**{field: value}).params(0)
        assert refusal.value.param == field
    assert chat(temperature=1e-9).params(0).greedy
    assert chat(temperature=0.1).params(0).temperature == 0.1


@pytest.mark.parametrize(
    ("choice", "given", "param"),
    [("required", None, "tool_choice"), ("some", TOOLS, "tool_choice"), ("required", [3], "tools")],
)
def test_of_tools_and_the_choice_among_them_the_one_at_fault_is_named(choice, given, param):
    for body in (chat(tools=given, tool_choice=choice), responses(tools=given, tool_choice=choice)):
        with pytest.raises(BadRequestError) as refusal:
            body.tool_use()
        assert refusal.value.param == param


def test_what_an_assistant_said_may_be_a_refusal_or_nothing():
    parts = [{"type": "refusal", "refusal": "No."}]
    body = chat(messages=[{"role": "assistant", "content": parts}, {"role": "assistant", "content": None}])
    assert [each["content"] for each in body.conversation()] == ["No.", ""]
    (said,) = responses(input=[{"role": "assistant", "content": parts}]).conversation()
    assert said == {"role": "assistant", "content": "No."}


def test_the_effort_of_reasoning_is_a_variable_of_the_template():
    assert chat(reasoning_effort="low").variables == {"reasoning_effort": "low"}
    body = chat(reasoning_effort="low", chat_template_kwargs={"reasoning_effort": "high", "x": 1})
    assert body.variables == {"reasoning_effort": "high", "x": 1}
    assert responses(reasoning={"effort": "low", "summary": "auto"}).variables == {"reasoning_effort": "low"}
    assert responses(reasoning={"effort": None, "summary": None}, chat_template_kwargs={"x": 1}).variables == {"x": 1}
    with pytest.raises(BadRequestError, match="effort must be a string"):
        responses(reasoning={"effort": 3}).variables  # noqa: B018


def test_a_response_may_include_what_no_answer_of_this_server_has():
    assert responses(include=["reasoning.encrypted_content"]).reported is None
    assert responses(include=["reasoning.encrypted_content", LOGPROBS], top_logprobs=2).reported == 2
    with pytest.raises(BadRequestError, match="include has 'more'"):
        responses(include=["more"]).reported  # noqa: B018


def test_unknown_fields_are_ignored():
    chat(user="somebody", metadata={"a": 1}, parallel_tool_calls=True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 11}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": 2**64}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", "b" * 201]}, "stop"),
        ({"stop_token_ids": list(range(40))}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1_0": 1}}, "logit_bias"),  # Python reads these four as numbers
        ({"logit_bias": {" 5": 1}}, "logit_bias"),
        ({"logit_bias": {"+5": 1}}, "logit_bias"),
        ({"logit_bias": {"": 1}}, "logit_bias"),
        ({"logit_bias": {"٥": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field(fields, param):
    def read():
        body = chat(**fields)
        return body.params(0), body.choices, body.stop_strings, body.stop_ids([]), body.conversation()

    with pytest.raises(BadRequestError) as refusal:
        read()
    assert refusal.value.param == param


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"temperature": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(raw):
    with pytest.raises(BadRequestError):
        read_body(raw, ChatBody)


@pytest.mark.parametrize(
    "raw", [b'{"messages": [], "n": 1, "messages": []}', b'{"messages": [{"role": "user", "role": ""}]}']
)
def test_a_key_that_comes_twice_is_refused(raw):
    with pytest.raises(BadRequestError, match=r"not valid JSON: the key '(messages|role)' comes twice"):
        read_body(raw, ChatBody)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "^the body is empty: send a JSON object$"),
        (b" \n", "^the body is empty"),
        ('{"prompt": "caf\u00e9"}'.encode("latin-1"), "^the body is not valid JSON: it is not UTF-8 text$"),
    ],
    ids=["empty", "blank", "Latin-1"],
)
def test_a_body_without_json_is_told_for_what_it_is(raw, sentence):
    with pytest.raises(BadRequestError, match=sentence):
        read_body(raw, ChatBody)


def test_arguments_of_a_call_with_a_key_twice_stay_a_text():
    given = '{"a": 1, "a": 2}'
    called = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": given}}
    (message,) = chat(messages=[{"role": "assistant", "tool_calls": [called]}]).conversation()
    assert message["tool_calls"][0]["function"]["arguments"] == given
    item = {"type": "function_call", "name": "f", "arguments": given}
    (message,) = responses(input=[item]).conversation()
    assert message["tool_calls"][0]["function"]["arguments"] == given


def test_a_body_may_begin_with_a_byte_order_mark():
    assert read_body(b'\xef\xbb\xbf{"prompt": "a"}', CompletionBody).prompts() == ["a"]


def test_prompts_may_be_texts_or_ids():
    def prompts(prompt):
        return read_body(json.dumps({"prompt": prompt}).encode(), CompletionBody).prompts()

    assert prompts("a") == ["a"]
    assert prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [[1, 2]]
    assert prompts([[1, 2], [3]]) == [[1, 2], [3]]
    with pytest.raises(BadRequestError):
        prompts([])
    with pytest.raises(BadRequestError):
        prompts(["a"] * 17)
    with pytest.raises(BadRequestError):
        prompts([1, "a"])


def test_stop_ids_are_the_models_and_the_requests():
    assert chat(stop_token_ids=[7]).stop_ids([2]) == (2, 7)
    assert chat(stop_token_ids=[7], ignore_eos=True).stop_ids([2]) == (7,)
