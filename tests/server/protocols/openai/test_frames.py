"""The bytes of OpenAI's chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.messages import FinishReason
from rbee.server.protocols.openai.frames import NO_MEMBERS, Chunks, Members, member
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.pieces import Piece


def chunks(*, chat: bool, n: int = 1, **options: bool) -> Chunks:
    """The chunks of a stream with fixed constants, after a prompt of three tokens."""
    return Chunks(
        kind="kind",
        answer_id="id-1",
        created=7,
        model='a "model"',
        chat=chat,
        options=StreamOptions(**options),
        prompt_tokens=[3],
        n=n,
    )


def piece(text: str, num_tokens: int = 1, committed_ns: int | None = 5) -> Piece:
    """A piece of text that a token brought."""
    return Piece(text, num_tokens, committed_ns, [])


def parse(frame: bytes) -> Any:
    """The JSON in a frame."""
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    return json.loads(frame.removeprefix(b"data: "))


def chunk(choice: dict[str, Any], **more: Any) -> dict[str, Any]:
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
    """The role comes with the first text and never again; the last chunk has the reason."""
    stream = chunks(chat=True)
    first = {"role": "assistant", "content": "a"}
    assert parse(stream.text(0, 0, piece("a"), NO_MEMBERS)) == chunk({"delta": first, "finish_reason": None})
    assert parse(stream.text(0, 1, piece("b"), NO_MEMBERS)) == chunk({"delta": {"content": "b"}, "finish_reason": None})
    assert parse(stream.last(0, 2, piece("c"), FinishReason.LENGTH, NO_MEMBERS)) == chunk(
        {"delta": {"content": "c"}, "finish_reason": "length"}
    )


def test_last_chunk_without_text_has_an_empty_delta():
    """A stop token shows no text: nothing but the reason is left."""
    last = chunks(chat=True).last(0, 1, piece(""), FinishReason.STOP, NO_MEMBERS)
    assert parse(last) == chunk({"delta": {}, "finish_reason": "stop"})


def test_stream_without_any_text_still_has_the_role():
    """A stream whose only chunk is the last one is a whole, empty message."""
    delta = {"role": "assistant", "content": ""}
    last = chunks(chat=True).last(0, 0, piece(""), FinishReason.STOP, NO_MEMBERS)
    assert parse(last) == chunk({"delta": delta, "finish_reason": "stop"})


def test_completion_chunks():
    """Plain completions carry text, without role and delta."""
    stream = chunks(chat=False)
    assert parse(stream.text(0, 0, piece("a"), NO_MEMBERS)) == chunk({"text": "a", "finish_reason": None})
    last = stream.last(0, 1, piece(""), FinishReason.STOP, NO_MEMBERS)
    assert parse(last) == chunk({"text": "", "finish_reason": "stop"})


def test_usage_and_further_members():
    """With usage asked for, every chunk has the member, the last one with numbers and no choices."""
    stream = chunks(chat=False, include_usage=True, include_timing=True)
    assert parse(stream.text(0, 0, piece("a"), NO_MEMBERS)) == chunk(
        {"text": "a", "finish_reason": None}, usage=None, timing={"committed_ns": 5}
    )
    counts = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    details = {"prompt_tokens_details": {"cached_tokens": 2}}
    assert parse(stream.usage(4, 2)) == chunk({}) | {"choices": [], "usage": counts | details}
    assert parse(stream.usage(4, None)) == chunk({}) | {"choices": [], "usage": counts}
    running = chunks(chat=False, include_usage=True, continuous_usage_stats=True)
    with_counts = chunk({"text": "a", "finish_reason": None}, usage=counts)
    assert parse(running.text(0, 0, piece("a", 4), NO_MEMBERS)) == with_counts
    without = chunks(chat=False, continuous_usage_stats=True)
    assert parse(without.text(0, 0, piece("a", 4), NO_MEMBERS)) == chunk({"text": "a", "finish_reason": None})
    assert without.usage(4, 2) == b""


@pytest.mark.parametrize("chat", [True, False])
def test_a_chunk_without_a_token_has_no_members_about_one(chat):
    """What an end alone brings was committed with no token, and the counts have been in the chunk before."""
    stream = chunks(chat=chat, include_timing=True, include_usage=True, continuous_usage_stats=True)
    assert parse(stream.text(0, 0, piece("a", committed_ns=None), NO_MEMBERS)).keys() == chunk({}).keys()


def test_counts_are_those_of_the_choices_own_prompt():
    """And at the end those of all prompts together, each of which counts once."""
    stream = Chunks(
        kind="kind", answer_id="id-1", created=7, model="m", chat=False, prompt_tokens=[3, 5], n=2,
        options=StreamOptions(include_usage=True, continuous_usage_stats=True),
    )  # fmt: skip
    totals = [parse(stream.text(choice, 0, piece("a", 4), NO_MEMBERS))["usage"]["total_tokens"] for choice in range(4)]
    assert totals == [7, 7, 9, 9]
    assert parse(stream.usage(16, None))["usage"] == {
        "prompt_tokens": 8,
        "completion_tokens": 16,
        "total_tokens": 24,
    }


@pytest.mark.parametrize("chat", [True, False])
def test_logprobs_are_the_choices(chat):
    """They stand beside the text, in a last chunk too, also if that has no text; the index is the choice's."""
    stream = chunks(chat=chat, n=3, include_timing=True)
    logprobs = Members(member("logprobs", {"content": [1.5]}), member("more", 1))
    frames = [
        parse(stream.text(2, 0, piece("a"), logprobs)),
        parse(stream.last(2, 1, piece("", committed_ns=None), FinishReason.STOP, logprobs)),
    ]
    for each in frames:
        [choice] = each["choices"]
        assert (choice["index"], choice["logprobs"]) == (2, {"content": [1.5]})
        assert each["more"] == 1
    assert frames[0]["timing"] == {"committed_ns": 5}
    assert frames[1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("text", ['"\\\n\r\x00', "\u2028é🐝", "data: [DONE]\n\n", "\ufffd"])
def test_any_text_stays_one_frame(text):
    """No text can end a frame early or break its JSON."""
    frame = chunks(chat=True).text(0, 0, piece(text), NO_MEMBERS)
    assert frame.count(b"\n") == 2
    assert parse(frame)["choices"][0]["delta"]["content"] == text
