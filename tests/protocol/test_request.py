"""The request value: what it refuses, and that it survives the wire."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import InputError
from multispin.protocol import DeviceSession, Hello, Profile, Request
from multispin.protocol.messages import decode_uplink, encode
from multispin.speculation import Rule, SamplingParams

V = 50
ids = st.lists(st.integers(0, V - 1), min_size=1, max_size=12).map(tuple)


@given(
    prompt=ids,
    generated=st.lists(st.integers(0, V - 1), max_size=5),
    params=st.builds(
        SamplingParams,
        st.floats(0.1, 2.0),
        st.integers(0, V),
        st.floats(0.1, 1.0),
        st.integers(0, 2**40),
        st.sampled_from([(), ((3, -1.5), (4, 100.0))]),
        min_p=st.floats(0.0, 1.0),
        presence_penalty=st.floats(-2.0, 2.0),
        frequency_penalty=st.floats(-2.0, 2.0),
        repetition_penalty=st.floats(0.1, 10.0),
        grammar=st.sampled_from(["", "start: /a+/"]),
        logprobs=st.sampled_from([None, 0, 20]),
    ),
    ends=st.tuples(st.integers(5, 100), st.integers(0, 100), ids.map(lambda found: found[:3])),
    rule=st.sampled_from([None, *set(Rule) - {Rule.GREEDY}]),
    sizes=st.tuples(st.integers(1, 4096), st.integers(2, 32)),
)
def test_the_edge_reads_back_the_request_that_a_device_opens(prompt, generated, params, ends, rule, sizes):
    if params.grammar:
        ends = (ends[0], 0, ends[2])  # it decides when the text may end
    if rule in (Rule.REJECTION_UP, Rule.REJECTION_DOWN):
        params = replace(params, logprobs=None)
    request = Request(prompt, params, *ends, (), rule, False, *sizes)
    message = decode_uplink(encode(request.to_open(7, generated, V)))
    assert Request.from_open(message, V) == (request, generated)


def test_a_request_settles_its_rule_and_withholds_stop_ids_early():
    request = Request([1, 2], SamplingParams(), 10, 3, [9])
    assert request == Request((1, 2), SamplingParams(), 10, 3, (9,), rule=Rule.GREEDY)
    assert (request.effective_params.withheld, request.effective_params.withheld_until) == ((9,), 5)
    assert Request((1,), SamplingParams(1.0), 10).acceptance_rule is Rule.COUPLED


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": ()}, "prompt tokens = 0 is outside 1"),
        ({"prompt": (1, -1)}, "negative"),
        ({"stop_ids": (-1,)}, "negative"),
        ({"stop_ids": tuple(range(17))}, "stop ids = 17 is outside 0 … 16"),
        ({"max_tokens": 0}, "max_tokens = 0 is outside 1"),
        ({"min_tokens": -1}, "min_tokens = -1 is outside 0"),
        ({"retained": 4097}, "retained = 4097 is outside 1 … 4096"),
        ({"probability_bits": 1}, "probability_bits = 1 is outside 2 … 32"),
        ({"stop_strings": ("",)}, "stop string of 0 characters"),
        ({"rule": Rule.REJECTION}, "rejection needs a temperature above 0"),
        ({"params": SamplingParams(1.0, logprobs=1), "rule": Rule.REJECTION_UP}, "logprobs cannot be reported under"),
        ({"params": SamplingParams(grammar="x"), "stop_ids": (1,), "min_tokens": 1}, "a grammar ends the text"),
        ({"params": SamplingParams(grammar="x")}, "a grammar ends the text"),
    ],
)
def test_a_request_that_cannot_be_is_refused_by_field_and_range(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        Request(**{"prompt": (1,), "params": SamplingParams(), "max_tokens": 5} | changes)


def test_ids_beyond_the_vocabulary_are_refused_by_both_ends():
    for request in (Request((1, V), SamplingParams(), 5), Request((1,), SamplingParams(), 5, stop_ids=(V,))):
        with pytest.raises(InputError, match=f"outside (the target's )?0 … {V - 1}"):
            request.check_vocabulary(V)
    message = Request((1,), SamplingParams(), 5, stop_ids=(V,)).to_open(1, [], V)
    with pytest.raises(InputError, match=f"stop id {V} is outside"):
        Request.from_open(message, V)


def test_stop_strings_need_a_tokenizer_on_the_device():
    device = DeviceSession(Hello(2, "abc", "phone", "q5", True, Profile(0.05, 3.0)))
    with pytest.raises(InputError, match="need a tokenizer"):
        device.begin(Request((1,), SamplingParams(), 5, stop_strings=("x",)))
