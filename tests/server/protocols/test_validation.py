"""Requests: what is taken, what is refused, and which field a refusal names."""

from typing import Any

import msgspec
import pytest

from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.openai import schemas
from rbee.server.protocols.openai.reader import output_limit, read_chat, read_completion, read_stream_options
from rbee.server.protocols.parameters import check_parameters, parameter_refusals, stop_strings

HI = [{"role": "user", "content": "hi"}]


def chat(*, lenient=False, **fields):
    """Everything that is checked without a model."""
    reader = FieldReader(lenient=lenient)
    request, messages, _ = read_chat({"messages": HI, **fields}, reader)
    return request, messages, stop_strings(request), read_stream_options(request, reader), output_limit(request), reader


def completion(**fields):
    """The same for a plain completion."""
    return read_completion({"prompt": "hi", **fields}, FieldReader(lenient=False))


def refusal(read, **fields):
    """The error for these fields."""
    with pytest.raises(Refusal) as caught:
        read(**fields)
    assert status_of(caught.value) == 400
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
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "missing_parameter"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "messages[0].contents", "unknown_parameter"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id",
         "missing_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type",
         "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"stop": ["a"] * 65}, "stop", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text",
         "missing_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "messages[0].content[0].text",
         "missing_parameter"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}]},
         "messages[0].content[0].type", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["a", "x" * 1001]}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream": True, "n": 2, "stream_options": {"resumable": True}}, "stream_options.resumable", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"include_stop_str_in_output": 0}, "include_stop_str_in_output", "invalid_type"),
        ({"user": 5}, "user", "invalid_type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "missing_parameter"),
        ({"length_penalty": True}, "length_penalty", "unsupported_parameter"),
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
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": ["a", [1, "b"]]}, "prompt[1]"),
        ({"prompt": [[True]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"messages": HI}, "messages"),
    ],
)
def test_completion_refusals_name_the_field(fields, param):
    """The same for plain completions."""
    assert refusal(completion, **fields).param == param


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("hi", ["hi"]),
        (["hi"], ["hi"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2]], [[1, 2]]),
        ([], [[]]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([[1], "b", [2, 3.0]], [[1], "b", [2, 3]]),
    ],
)
def test_prompts(prompt, read):
    """Text and token ids, alone or several, mixed."""
    prompts = completion(prompt=prompt)[1]
    assert [each.token_ids if each.text is None else each.text for each in prompts] == read


def test_unknown_field_suggests_the_nearest():
    """A misspelled field is refused with the name that was meant, if there is one."""
    assert "Did you mean temperature?" in refusal(chat, temprature=1).message
    assert "Did you mean" not in refusal(chat, zzzzzz=1).message


def test_lenient_ignores_what_leaves_the_kind_of_answer_as_it_is():
    """That is remembered; what asks for another kind of answer, or is wrong, is still refused."""
    *_, reader = chat(lenient=True, zzz=1, mirostat=2, stream=True, stream_options={"yyy": 2})
    assert reader.ignored == ["zzz", "mirostat", "stream_options.yyy"]
    assert refusal(chat, mirostat=2).param == "mirostat"
    assert refusal(chat, lenient=True, tools=[{}]).param == "tools[0].type"
    assert refusal(chat, lenient=True, temperature="x").param == "temperature"


ADVISORY = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "sess-1",
    "prompt_cache_retention": "24h",
    "verbosity": "low",
    "cache_prompt": True,
    "request_id": "r",
    "timings_per_token": True,
    "prediction": {"type": "content", "content": "x"},
    "id_slot": 3,
}


@pytest.mark.parametrize("read", [chat, completion])
def test_advisory_fields_are_taken_and_listed(read):
    """They cannot change what the answer is; with null they are absent."""
    assert set(ADVISORY) == schemas.ADVISORY_CHAT == schemas.ADVISORY_COMPLETION
    reader = FieldReader(lenient=False)
    asked: Any
    if read is chat:
        asked, *_ = read_chat({"messages": HI, **ADVISORY}, reader)
    else:
        asked, _ = read_completion({"prompt": "hi", **ADVISORY}, reader)
    assert reader.ignored == [*ADVISORY]
    plain = read()[0]
    assert msgspec.structs.replace(asked, user=None, metadata=None) == plain
    assert read(**dict.fromkeys(ADVISORY))[0] == plain


SENT_BACK = {
    "annotations": [{"type": "url_citation"}],
    "cache_control": {"type": "ephemeral"},
    "created_at": 1,
    "id": "msg_1",
    "metadata": {},
    "provider_specific_fields": {"x": 1},
    "reasoning": "Hm.",
    "reasoning_content": "Hm.",
    "reasoning_details": [{}],
    "refusal": "No.",
    "status": "completed",
    "timestamp": "2026-01-01",
}


def test_messages_that_clients_send_back():
    """What an earlier answer or the client itself has put there is no prompt: it is listed."""
    assert set(SENT_BACK) == schemas.ADVISORY_MESSAGE
    given = [*HI, {"role": "assistant", "content": None, **SENT_BACK}, HI[0]]
    _, messages, *_, reader = chat(messages=given)
    assert messages == [*HI, {"role": "assistant", "content": ""}, *HI]
    assert reader.ignored == [f"messages[1].{name}" for name in SENT_BACK]
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    *_, reader = chat(messages=[{"role": "user", "content": [part]}])
    assert reader.ignored == ["messages[0].content[0].cache_control"]
    *_, reader = chat(stream=True, stream_options={"include_obfuscation": False})
    assert reader.ignored == ["stream_options.include_obfuscation"]


def test_an_assistants_turn_may_be_empty():
    """One that called tools, or was refused, had no text; a refusal is one."""
    without: list[dict[str, Any]] = [{"role": "assistant"}, {"role": "assistant", "content": None, "tool_calls": []}]
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    messages = chat(messages=[*HI, *without, refused])[1]
    assert [message["content"] for message in messages] == ["hi", "", "", "No."]


def test_counts_without_their_usage_are_listed():
    """continuous_usage_stats is a part of include_usage, as in vLLM."""
    *_, reader = chat(stream=True, stream_options={"continuous_usage_stats": True})
    assert reader.ignored == ["stream_options.continuous_usage_stats"]
    *_, reader = chat(stream=True, stream_options={"continuous_usage_stats": True, "include_usage": True})
    assert reader.ignored == []


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
    """OpenAI allows a bare string; each has 1000 bytes at most."""
    assert chat(stop="END")[2] == ["END"]
    assert chat(stop=["a", "b", "c", "x" * 1000])[2] == ["a", "b", "c", "x" * 1000]


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": 1,}', b"\xff", b"[1]", b"3", b'{"a": "\xff"}', b"[" * 10_000])
def test_malformed_json(body):
    """Whatever is not a JSON object is a 400."""
    assert refusal(lambda: decode_object(body)).code == "invalid_json"


def test_malformed_json_says_where():
    """The position of the first wrong byte is in the message."""
    assert "byte 6" in refusal(lambda: decode_object(b'{"a": x}')).message


def test_all_refusals_of_the_parameters_can_be_had():
    """A protocol that lists every error gets each of them; one that raises the first gets that."""
    request = schemas.CompletionRequest(prompt="hi", temperature=1001.0, top_p=2.0, cache_salt="x" * 257)
    found = list(parameter_refusals(request))
    assert [refusal.param for refusal in found] == ["temperature", "top_p", "cache_salt"]
    with pytest.raises(Refusal) as caught:
        check_parameters(request)
    assert caught.value.message == found[0].message
