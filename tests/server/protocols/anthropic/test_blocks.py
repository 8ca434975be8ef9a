"""Thinking and tool calls in Messages: the events of their blocks, the whole message, and why both end."""

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.protocols.anthropic.blocks import INVALID_JSON, SIGNATURE
from rbee.server.protocols.call_ids import call_id
from rbee.server.streams.pieces import Part, Piece
from rbee.server.text.output import OutputKind
from tests.server.protocols.dialects_parts import collected, make_messages_dialect, parse_events, streamed
from tests.server.streams.tagged_output import ANSWER, PLAN

pytestmark = pytest.mark.anyio


@pytest.fixture
def dialect():
    """An answer that is parsed."""
    return make_messages_dialect(plan=PLAN)


def events_of(dialect, words, reason=FinishReason.STOP, **options):
    """The data of all events between the first message_start and the ping, and the rest."""
    start, ping, *events = [event.data for event in parse_events(streamed(dialect, words, reason, **options).written())]
    assert (start["type"], ping) == ("message_start", {"type": "ping"})
    return events


def start(index, **block):
    """A block begins."""
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index, kind, **members):
    """A block goes on."""
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind} | members}


def stop(index):
    """A block ends."""
    return {"type": "content_block_stop", "index": index}


async def test_stream_event_by_event(dialect):
    """Each block begins with its first piece and ends before the next one begins; thinking is signed first."""
    ids = [call_id("toolu_", dialect.answer_id, 0, number) for number in range(2)]
    assert events_of(dialect, ANSWER) == [
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Hm"),
        delta(0, "thinking_delta", thinking="."),
        delta(0, "signature_delta", signature=SIGNATURE),
        stop(0),
        start(1, type="text", text=""),
        delta(1, "text_delta", text="So: "),
        stop(1),
        start(2, type="tool_use", id=ids[0], name="add", input={}),
        delta(2, "input_json_delta", partial_json="{"),
        delta(2, "input_json_delta", partial_json='"a": 1}'),
        stop(2),
        start(3, type="tool_use", id=ids[1], name="f", input={}),
        delta(3, "input_json_delta", partial_json="{}"),
        stop(3),
        start(4, type="text", text=""),
        delta(4, "text_delta", text="!"),
        stop(4),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "input_tokens": 7,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 8,
                "output_tokens_details": {"thinking_tokens": 2},
            },
        },
        {"type": "message_stop"},
    ]


async def test_whole_message(dialect):
    """The same blocks, with the arguments as an object."""
    ids = [call_id("toolu_", dialect.answer_id, 0, number) for number in range(2)]
    message = collected(dialect, ANSWER, FinishReason.STOP)
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": SIGNATURE},
        {"type": "text", "text": "So: "},
        {"type": "tool_use", "id": ids[0], "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": ids[1], "name": "f", "input": {}},
        {"type": "text", "text": "!"},
    ]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)
    assert message["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


@pytest.mark.parametrize(
    ("words", "reason", "stop_reason", "stop_sequence"),
    [
        (["a"], FinishReason.STOP, "end_turn", None),
        (["<think>a"], FinishReason.LENGTH, "max_tokens", None),
        (["<tool_call>f{", '"a'], FinishReason.LENGTH, "max_tokens", None),
        (["<tool_call>f{}"], FinishReason.DEADLINE, "deadline", None),
        (["<tool_call>f{}</tool_call>", "END"], 0, "stop_sequence", "END"),
        (["<tool_call>f{}</tool_call>"], FinishReason.STOP, "tool_use", None),
    ],
)
async def test_why_a_message_ends(dialect, words, reason, stop_reason, stop_sequence):
    """The limit and the deadline come before a call that they may have cut, and so does a stop sequence."""
    why = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
    assert events_of(dialect, words, reason, stops=["END"])[-2]["delta"] == why
    whole = collected(dialect, words, reason, stops=["END"])
    assert {name: whole[name] for name in why} == why


async def test_message_without_anything_is_one_empty_text(dialect):
    """As without a parser."""
    words = ["<think>", "</think>"]
    assert events_of(dialect, words)[:2] == [start(0, type="text", text=""), stop(0)]
    assert collected(dialect, words, FinishReason.STOP)["content"] == [{"type": "text", "text": ""}]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": [1.0, 1e400, "\\u00e9"]}', None),
        ('{"a": "b', {INVALID_JSON: '{"a": "b'}),
        ("{1}", {INVALID_JSON: "{1}"}),
        ('{"a": NaN}', {INVALID_JSON: '{"a": NaN}'}),
        ("{" + '"a":{' * 5000, {INVALID_JSON: "{" + '"a":{' * 5000}),
    ],
    ids=["an object", "cut", "no JSON", "not a number", "deep"],
)
async def test_input_is_an_object(dialect, arguments, shown):
    """As the model wrote it; what is none is in one, so that nothing is lost."""
    [block] = collected(dialect, [f"<tool_call>f{arguments}"], FinishReason.LENGTH)["content"]
    if shown is None:
        body = streamed(dialect, [f"<tool_call>f{arguments}"], FinishReason.LENGTH).written()
        [said] = [event.data["delta"]["partial_json"] for event in parse_events(body) if "partial_json" in str(event)]
        assert said == arguments
    else:
        assert block["input"] == shown


async def test_call_without_arguments(dialect):
    """Its input is empty."""
    [block] = collected(dialect, ["<tool_call>f"], FinishReason.LENGTH)["content"]
    assert (block["name"], block["input"]) == ("f", {})


async def test_error_in_a_block(dialect):
    """The stream ends there."""
    case = streamed(dialect, ["<think>a"], 0)
    case.reply.fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    *_, last, error = parse_events(case.written())
    assert last.data == delta(0, "thinking_delta", thinking="a")
    assert error.data["error"]["message"] == "Gone."


def test_a_frame_that_is_rendered_again_is_the_same(dialect):
    """The piece says all of what came before it."""
    piece = Piece("f", 3, 1, [], OutputKind.TOOL_NAME, 2, 3, Part(OutputKind.REASONING, ""))
    frame = dialect.piece(0, piece, 9)
    assert [event.name for event in parse_events(frame)] == [
        "content_block_delta", "content_block_stop", "content_block_start",
    ]  # fmt: skip
    assert dialect.piece(0, piece, 9) == frame
