"""Requests: what is taken, what is refused, and which field a refusal names."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server import schemas
from rbee.server.errors import ApiError
from rbee.server.validation import (
    FieldReader,
    decode_object,
    output_limit,
    read_chat,
    read_completion,
    read_stream_options,
    sampling_params,
    stop_strings,
)

HI = [{"role": "user", "content": "hi"}]


def chat(*, lenient=False, **fields):
    """Everything that is checked without a model."""
    reader = FieldReader(lenient=lenient)
    request, messages = read_chat({"messages": HI, **fields}, reader)
    return request, messages, stop_strings(request), read_stream_options(request, reader), output_limit(request), reader


def completion(**fields):
    """The same for a plain completion."""
    return read_completion({"prompt": "hi", **fields}, FieldReader(lenient=False))


def refusal(read, **fields):
    """The error for these fields."""
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_parameter"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [*HI, {"role": "user", "content": 3}]}, "messages[1].content", "invalid_type"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "unsupported_parameter"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "messages[0].contents", "unknown_parameter"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls",
         "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type",
         "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": -0.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"top_p": 1.01}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", "x" * 1001]}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]", "invalid_type"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"min_p": 0.1}, "min_p", "unsupported_parameter"),
        ({"prompt": "hi"}, "prompt", "unknown_parameter"),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "invalid_value"),
    ],
)  # fmt: skip
def test_chat_refusals_name_the_field(fields, param, code):
    """Each wrong value is a 400 whose param and message name the field, and whose code says what is wrong."""
    error = refusal(chat, **fields)
    assert (error.param, error.code) == (param, code)
    assert param.rpartition(".")[2] in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"logprobs": 0}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": HI}, "messages"),
    ],
)
def test_completion_refusals_name_the_field(fields, param):
    """The same for plain completions."""
    assert refusal(completion, **fields).param == param


@pytest.mark.parametrize(
    ("prompt", "read"),
    [("hi", "hi"), (["hi"], "hi"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ([], []), ("", "")],
)
def test_prompts(prompt, read):
    """Text and token ids, alone or in a list with nothing else."""
    assert completion(prompt=prompt)[1] == read


def test_unknown_field_suggests_the_nearest():
    """A misspelled field is refused with the name that was meant, if there is one."""
    assert "Did you mean temperature?" in refusal(chat, temprature=1).message
    assert "Did you mean" not in refusal(chat, zzzzzz=1).message


def test_lenient_ignores_unknown_fields_only():
    """What is unknown is remembered; what is known and unsupported, or wrong, is still refused."""
    *_, reader = chat(lenient=True, zzz=1, stream=True, stream_options={"yyy": 2})
    assert reader.ignored == ["zzz", "stream_options.yyy"]
    assert refusal(chat, lenient=True, n=2).param == "n"
    assert refusal(chat, lenient=True, temperature="x").param == "temperature"


@pytest.mark.parametrize(
    "neutral", [schemas.NEUTRAL_CHAT, schemas.NEUTRAL_COMPLETION], ids=["chat completions", "completions"]
)
def test_unsupported_fields_are_taken_when_they_ask_for_nothing(neutral):
    """Null and the neutral values are accepted, anything else is refused by name."""
    read = chat if neutral is schemas.NEUTRAL_CHAT else completion
    for name, values in neutral.items():
        for value in (None, *values):
            read(**{name: value})
        assert refusal(read, **{name: "something else"}).param == name


def test_null_means_absent():
    """A client that sends every field as null gets the defaults."""
    assert chat(temperature=None, max_tokens=None, stop=None, stream=None, n=None)[0] == chat()[0]


def test_content_parts_become_one_text():
    """The texts of several parts are joined by line breaks; a name stays."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = chat(messages=[{"role": "user", "name": "Ada", "content": parts}])[1]
    assert messages == [{"role": "user", "content": "a\nb", "name": "Ada"}]


def test_a_string_is_one_stop_string():
    """OpenAI allows a bare string; four are the most, and 1000 bytes."""
    assert chat(stop="END")[2] == ["END"]
    assert chat(stop=["a", "b", "c", "x" * 1000])[2] == ["a", "b", "c", "x" * 1000]


def params(request, **more):
    """Sampling parameters for a 10-token prompt of a model with 100 tokens of length and 50 of vocabulary."""
    values = {"max_tokens": None, "prompt_tokens": 10, "max_model_len": 100, "vocab_size": 50, "end_token_ids": {7, 8}}
    return sampling_params(request, **values | more)


def test_sampling_params():
    """Values go through; end-of-sequence ids join the client's; the output is as long as asked or as there is room."""
    request = chat(temperature=0.5, top_p=0.9, top_k=3, seed=11, stop_token_ids=[4])[0]
    sampling = params(request)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 3, 11)
    assert sampling.stop_token_ids == (4, 7, 8)
    assert sampling.max_tokens == 90
    assert params(request, max_tokens=90).max_tokens == 90
    assert params(chat(ignore_eos=True)[0]).stop_token_ids == ()
    assert params(chat(top_k=-1)[0]).top_k == 0


def test_without_a_seed_the_server_picks_one():
    """Two requests do not draw the same numbers by default."""
    request = chat()[0]
    assert params(request).seed != params(request).seed


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "wanted"), [(10, 91, 101), (100, None, 101), (100, 1, 101), (5000, 10, 5010)]
)
def test_too_long_says_both_numbers(prompt_tokens, max_tokens, wanted):
    """A context that cannot fit is refused with the model's length and with what was asked for."""
    error = refusal(lambda: params(chat()[0], prompt_tokens=prompt_tokens, max_tokens=max_tokens))
    assert error.code == "context_length_exceeded"
    assert "100 tokens" in error.message
    assert str(wanted) in error.message


@pytest.mark.parametrize("token_id", [-1, 50])
def test_stop_token_ids_must_exist(token_id):
    """An id outside the vocabulary would never be sampled; the client meant something else."""
    assert refusal(lambda: params(chat(stop_token_ids=[token_id])[0])).param == "stop_token_ids"


def test_empty_prompt_is_refused():
    """There is nothing to continue."""
    assert refusal(lambda: params(completion()[0], prompt_tokens=0)).param == "prompt"


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1,}', b"\xff", b"[1]", b"3", b'{"a": "\xff"}', b"[" * 100_000])
def test_malformed_json(body):
    """Whatever is not a JSON object is a 400."""
    assert refusal(lambda: decode_object(body)).code == "invalid_json"


def test_malformed_json_says_where():
    """The position of the first wrong byte is in the message."""
    assert "byte 6" in refusal(lambda: decode_object(b'{"a": x}')).message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([*schemas.ChatRequest.__struct_fields__, *schemas.NEUTRAL_CHAT]) | st.text(max_size=5)


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_object_is_taken_or_refused(fields):
    """No JSON, however odd, causes anything but an ApiError."""
    with contextlib.suppress(ApiError):
        chat(**{"messages": HI} | fields)
