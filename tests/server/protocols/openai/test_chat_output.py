"""Reasoning and tool calls in chats: the frames, the whole message, and how both end."""

from __future__ import annotations

import json

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.protocols.call_ids import call_id
from rbee.server.streams.generation import OutputPlan
from rbee.server.streams.pieces import Piece
from rbee.server.streams.replies import CollectedReply
from rbee.server.text.output import OutputKind
from tests.batches import record_batch, scored
from tests.server.streams.streams_parts import StreamedCase, make_dialect, make_sinks, make_text
from tests.server.streams.tagged_output import PLAN, TaggedFormat, WordTokens

pytestmark = pytest.mark.anyio

CALLS = [call_id("call_", "i", 0, number) for number in range(2)]
WORDS = ["<think>", "Hm", ".</think>", "So", ": <tool_call>", 'add{"a"', ": 1}", "</tool_call><tool_call>now{}"]
MESSAGE = {
    "role": "assistant",
    "content": "So: ",
    "refusal": None,
    "reasoning_content": "Hm.",
    "reasoning": "Hm.",
    "tool_calls": [
        {"id": CALLS[0], "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": CALLS[1], "type": "function", "function": {"name": "now", "arguments": "{}"}},
    ],
}


class ToolsOnly(TaggedFormat):
    """The format of a model that does not reason."""

    has_reasoning = False


def streamed(words, reason=FinishReason.STOP, plan=PLAN, **options):
    """A stream whose tokens are these words."""
    case = StreamedCase(chat=True, plan=plan, new_detokenizer=lambda: WordTokens(words), **options)
    for index in range(options.get("n", 1)):
        case.choices[index].deliver(record_batch([(number, -0.5) for number in range(len(words))], reason))
    return case


def whole(words, reason=FinishReason.STOP, plan=PLAN):
    """The answer that is not streamed."""
    reply, dialect = CollectedReply(), make_dialect(chat=True, plan=plan)
    [choice] = make_sinks(reply, [make_text(new_detokenizer=lambda: WordTokens(words))], plan=plan, keep_text=True)
    choice.deliver(record_batch([(number, -0.5) for number in range(len(words))], reason))
    return json.loads(dialect.answer(reply.choices, reply.outcome))


def deltas(case):
    """What the chunks of a stream say, and why the last one is that."""
    chunks = [event["choices"][0] for event in case.events() if event != "[DONE]" and event.get("choices")]
    assert all(chunk["finish_reason"] is None for chunk in chunks[:-1])
    return [chunk["delta"] for chunk in chunks], chunks[-1]["finish_reason"]


def no_reasoning(**members):
    """The delta of a model that may reason, and does not here."""
    return {"reasoning_content": None} | members


def call(index, **function):
    """The delta of a call."""
    return no_reasoning(tool_calls=[{"index": index, "function": function}])


def first_of(index, name):
    """The first delta of a call."""
    function = {"name": name, "arguments": ""}
    return no_reasoning(tool_calls=[{"index": index, "id": CALLS[index], "type": "function", "function": function}])


async def test_stream_delta_by_delta():
    """The role with the first one, id and name with the first of a call, then its arguments as they come."""
    said, reason = deltas(streamed([*WORDS, "</tool_call>"]))
    assert said == [
        {"role": "assistant", "content": None, "reasoning_content": "Hm", "reasoning": "Hm"},
        {"reasoning_content": ".", "reasoning": "."},
        no_reasoning(content="So"),
        no_reasoning(content=": "),
        first_of(0, "add"),
        call(0, arguments='{"a"'),
        call(0, arguments=": 1}"),
        first_of(1, "now"),
        call(1, arguments="{}"),
        no_reasoning(),
    ]
    assert reason == "tool_calls"


async def test_deltas_of_a_model_that_does_not_reason():
    """They and the whole message do not name it."""
    plan = OutputPlan(format=ToolsOnly())
    said, _ = deltas(streamed(["So: ", "<tool_call>f{", "}", "</tool_call>", ""], plan=plan))
    assert [{*delta} for delta in said] == [{"role", "content"}, {"tool_calls"}, {"tool_calls"}, {"tool_calls"}, set()]
    assert "reasoning_content" not in whole(["So"], plan=plan)["choices"][0]["message"]


async def test_first_bytes_of_a_stream():
    """Members in OpenAI's order."""
    frame = streamed(["<tool_call>f{", "}"]).written().split(b"\n\n")[0]
    assert frame == (
        b'data: {"id":"i","object":"chat.completion.chunk","created":0,"model":"m","choices":[{"index":0,"delta":'
        b'{"role":"assistant","content":null,"reasoning_content":null,"tool_calls":[{"index":0,"id":"%b","type":"function","function":'
        b'{"name":"f","arguments":""}}]},"finish_reason":null}]}' % CALLS[0].encode()
    )


async def test_end_shares_the_frame_of_the_last_piece():
    """Also if that is of a call, or of reasoning; a name alone is a call."""
    for words, last, reason in [
        (["<think>a", "b"], {"reasoning_content": "b", "reasoning": "b"}, "stop"),
        (["<tool_call>f", "{", "}"], call(0, arguments="}"), "tool_calls"),
        (["<tool_call>", "f"], first_of(0, "f") | {"role": "assistant", "content": None}, "tool_calls"),
        (["<think>", "</think>"], no_reasoning(role="assistant", content=""), "stop"),
    ]:
        said, why = deltas(streamed(words))
        assert (said[-1], why) == (last, reason)


async def test_whole_answer():
    """The same, in one message; the tokens that were reasoning are counted."""
    answer = whole(WORDS)
    assert answer["choices"][0]["message"] == MESSAGE
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["<tool_call>f{}", "</tool_call>"], {"content": None}),
        (["<think>a", "</think>"], {"content": "", "reasoning": "a"}),
        (["a"], {"content": "a"}),
        (["<think>"], {"content": ""}),
    ],
)
async def test_content_is_null_beside_calls_alone(words, message):
    """Else it is a text. Without reasoning one of its names is null; other members that say nothing are not there."""
    shown = whole(words)["choices"][0]["message"]
    assert shown["reasoning_content"] == message.get("reasoning")
    assert ("reasoning" in shown) == ("reasoning" in message)
    assert ("tool_calls" in shown) == (message["content"] is None)
    assert shown == shown | message


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.DEADLINE])
async def test_cut_inside_of_a_call(reason):
    """What there is of it is shown, and why there is no more."""
    words = ["<tool_call>add{", '"a']
    name = reason.name.lower()
    assert deltas(streamed(words, reason))[1] == name
    [choice] = whole(words, reason)["choices"]
    assert choice["finish_reason"] == name
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a'}


async def test_choices_are_parsed_alone():
    """Each has its own calls, with ids of their own."""
    case = streamed(["<tool_call>f{", "}</tool_call>"], n=2, include_usage=True)
    calls = [event["choices"][0] for event in case.events()[:-2] if "tool_calls" in event["choices"][0]["delta"]]
    ids = [choice["delta"]["tool_calls"][0].get("id") for choice in calls]
    assert [choice["index"] for choice in calls] == [0, 0, 0, 1, 1, 1]
    assert ids == [CALLS[0], None, None, call_id("call_", "i", 1, 0), None, None]


async def test_usage_of_a_stream():
    """It counts the tokens of reasoning, of all choices together."""
    usage = streamed(WORDS, n=2, include_usage=True).events()[-2]["usage"]
    assert usage["completion_tokens"] == 2 * len(WORDS)
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}
    none = streamed(["a"], include_usage=True).events()[-2]["usage"]
    assert none["completion_tokens_details"] == {"reasoning_tokens": 0}


async def test_logprobs_list_every_token():
    """Those of tags and of calls too, as vLLM does, with the next chunk that says anything."""
    words = ["<think>", "a", "</think>", "b", "<tool_call>f{", "}", "</tool_call>"]
    case = StreamedCase(chat=True, plan=PLAN, new_detokenizer=lambda: WordTokens(words), logprobs=True)
    case.choices[0].deliver(
        record_batch([record for number in range(len(words)) for record in scored(number, -0.5)], FinishReason.STOP)
    )
    chunks = [event["choices"][0] for event in case.events()[:-1]]
    listed = [len(chunk["logprobs"]["content"]) if "logprobs" in chunk else 0 for chunk in chunks]
    assert listed == [2, 2, 1, 0, 1, 1]


async def test_error_after_a_call():
    """The stream ends as any other."""
    case = streamed(["<tool_call>f{", "}"], reason=0)
    case.reply.fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    assert [event if event == "[DONE]" else event["error"]["code"] for event in case.events()[-2:]] == [
        "engine_died",
        "[DONE]",
    ]


def test_a_frame_that_is_rendered_again_is_the_same():
    """Nothing but the piece is needed, and the ids are those of the first time."""
    dialect = make_dialect(chat=True, plan=PLAN)
    pieces = [
        Piece("f", 3, 1, [], OutputKind.TOOL_NAME, 2, 4),
        Piece("a", 3, 1, [], OutputKind.REASONING, 0, 0),
        Piece("{", 3, 1, [], OutputKind.TOOL_ARGUMENTS, 2, 4),
    ]
    for number in (0, 7):
        assert [dialect.piece(0, piece, number) for piece in pieces] == [
            dialect.piece(0, piece, number) for piece in pieces
        ]


def test_ids_cannot_be_guessed_from_each_other():
    """Each has the answer's id, its choice and its number in it, and shows none of them."""
    ids = {
        call_id("call_", answer, choice, number) for answer in ("a", "b") for choice in (0, 1) for number in (0, 1, 11)
    }
    assert len(ids) == 12
    assert all(len(each) == len("call_") + 24 for each in ids)


async def test_output_that_is_not_parsed_is_text():
    """Whatever stands in it."""
    [choice] = whole(["<think>a"], plan=None)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "<think>a", "refusal": None}
