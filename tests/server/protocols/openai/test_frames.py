"""The bytes of OpenAI's streams."""

import json

import pytest

from rbee.server.protocols.openai import frames as sse


def frames(*, chat, usage=False, index=0):
    """The frames of a stream with fixed constants."""
    return sse.Frames(kind="kind", request_id="id-1", created=7, model='a "model"', chat=chat, usage=usage, index=index)


def parse(frame):
    """The JSON in a frame."""
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    return json.loads(frame.removeprefix(b"data: "))


def chunk(choice, **more):
    """A whole chunk with one choice."""
    return {
        "id": "id-1",
        "object": "kind",
        "created": 7,
        "model": 'a "model"',
        "choices": [{"index": 0, **choice}],
        **more,
    }


def test_chat_chunks():
    """The role comes with the first text and never again; the last chunk says why it is the last."""
    stream = frames(chat=True)
    first = {"role": "assistant", "content": "a"}
    assert parse(stream.text("a")) == chunk({"delta": first, "finish_reason": None})
    assert parse(stream.text("b")) == chunk({"delta": {"content": "b"}, "finish_reason": None})
    assert parse(stream.last("c", "length")) == chunk({"delta": {"content": "c"}, "finish_reason": "length"})


def test_last_chunk_without_text_has_an_empty_delta():
    """A stop token shows no text: nothing but the reason is left to say."""
    stream = frames(chat=True)
    stream.text("a")
    assert parse(stream.last("", "stop")) == chunk({"delta": {}, "finish_reason": "stop"})


def test_stream_without_any_text_still_says_the_role():
    """A stream whose only chunk is the last one is a whole, empty message."""
    delta = {"role": "assistant", "content": ""}
    assert parse(frames(chat=True).last("", "stop")) == chunk({"delta": delta, "finish_reason": "stop"})


def test_completion_chunks():
    """Plain completions carry text, without role and delta."""
    stream = frames(chat=False)
    assert parse(stream.text("a")) == chunk({"text": "a", "finish_reason": None})
    assert parse(stream.last("", "stop")) == chunk({"text": "", "finish_reason": "stop"})


def test_usage_and_further_members():
    """With usage asked for, every chunk has the member, the last one with numbers and no choices."""
    stream = frames(chat=False, usage=True)
    assert parse(stream.text("a", sse.timing_member(5))) == chunk(
        {"text": "a", "finish_reason": None}, usage=None, timing={"committed_ns": 5}
    )
    counts = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    details = {"prompt_tokens_details": {"cached_tokens": 2}}
    assert parse(stream.usage(3, 4, 2)) == chunk({}) | {"choices": [], "usage": counts | details}
    assert parse(stream.usage(3, 4, None)) == chunk({}) | {"choices": [], "usage": counts}
    plain = frames(chat=False)
    assert parse(plain.text("a", sse.usage_member(3, 4))) == chunk({"text": "a", "finish_reason": None}, usage=counts)


@pytest.mark.parametrize("chat", [True, False])
def test_logprobs_are_the_choices(chat):
    """They stand beside the text, in a last chunk too, also if that has no text; the index is the choice's."""
    stream = frames(chat=chat, index=2)
    logprobs = sse.logprobs_member({"content": [1.5]})
    chunks = [
        parse(stream.text("a", sse.timing_member(5), logprobs)),
        parse(stream.last("", "stop", b"", logprobs)),
    ]
    for each in chunks:
        [choice] = each["choices"]
        assert (choice["index"], choice["logprobs"]) == (2, {"content": [1.5]})
    assert chunks[0]["timing"] == {"committed_ns": 5}
    assert chunks[1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("text", ['"\\\n\r\x00', "\u2028é🐝", "data: [DONE]\n\n", "\ufffd"])
def test_any_text_stays_one_frame(text):
    """No text can end a frame early or break its JSON."""
    frame = frames(chat=True).text(text)
    assert frame.count(b"\n") == 2
    assert parse(frame)["choices"][0]["delta"]["content"] == text
