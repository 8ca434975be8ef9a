"""Reasoning and function calls in Responses: the events of their items, the whole output, and their numbers."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.protocols.call_ids import call_id
from tests.server.protocols.dialects_parts import collected, make_responses_dialect, parse_events, streamed
from tests.server.streams.tagged_output import ANSWER, PLAN

pytestmark = pytest.mark.anyio


@pytest.fixture
def dialect():
    """An answer that is parsed."""
    made = make_responses_dialect(plan=PLAN)
    assert made.answer_id.startswith("resp_")
    return made


class Expected:
    """The items of an answer, and the events that they have."""

    def __init__(self, dialect):
        self._answer_id = dialect.answer_id
        self._unique = dialect.answer_id.removeprefix("resp_")

    def place(self, prefix, index):
        """Where a text is."""
        return {"item_id": f"{prefix}_{self._unique}{f'_{index}' if index else ''}", "output_index": index}

    def item(self, prefix, index, status, *content, **more):
        """An item."""
        own_id = self.place(prefix, index)["item_id"]
        if prefix == "fc":
            own_call = {"call_id": call_id("call_", self._answer_id, 0, more.pop("call"))}
            return {"id": own_id, "type": "function_call", "status": status} | own_call | more
        kind = {"type": "message", "role": "assistant"} if prefix == "msg" else {"type": "reasoning", "summary": []}
        return {"id": own_id, "status": status, "content": list(content)} | kind

    def content_events(self, prefix, index, deltas, status="completed"):
        """The events of a message or of reasoning."""
        text = "".join(deltas)
        place = self.place(prefix, index) | {"content_index": 0}
        logprobs: dict[str, list[str]] = {"logprobs": []} if prefix == "msg" else {}
        kind = "output_text" if prefix == "msg" else "reasoning_text"
        part = {"type": kind} | logprobs | ({"annotations": []} if prefix == "msg" else {})
        begun = self.item(prefix, index, "in_progress")
        done = self.item(prefix, index, status, part | {"text": text})
        return [
            ("response.output_item.added", {"output_index": index, "item": begun}),
            ("response.content_part.added", place | {"part": part | {"text": ""}}),
            *((f"response.{kind}.delta", place | {"delta": delta} | logprobs) for delta in deltas),
            (f"response.{kind}.done", place | {"text": text} | logprobs),
            ("response.content_part.done", place | {"part": part | {"text": text}}),
            ("response.output_item.done", {"output_index": index, "item": done}),
        ]

    def call_events(self, index, call, name, deltas, status="completed"):
        """The events of a function call."""
        text, place = "".join(deltas), self.place("fc", index)
        begun, done = (
            self.item("fc", index, state, call=call, name=name, arguments=arguments)
            for state, arguments in (("in_progress", ""), (status, text))
        )
        kind = "response.function_call_arguments"
        return [
            ("response.output_item.added", {"output_index": index, "item": begun}),
            *((f"{kind}.delta", place | {"delta": delta}) for delta in deltas),
            (f"{kind}.done", place | {"name": name, "arguments": text}),
            ("response.output_item.done", {"output_index": index, "item": done}),
        ]


def events_of(dialect, words, reason=FinishReason.STOP):
    """Name and members of each event but the first two and the last; and the response of the last one."""
    events = parse_events(streamed(dialect, words, reason).written())
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert [event.name for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0].data["response"]["output"] == []
    told = [
        (event.name, {name: event.data[name] for name in event.data if name not in ("type", "sequence_number")})
        for event in events[2:-1]
    ]
    return told, events[-1].data["response"]


async def test_stream_event_by_event(dialect):
    """Item after item, each with its own index; the response has them all."""
    told, response = events_of(dialect, ANSWER)
    expected = Expected(dialect)
    assert told == [
        *expected.content_events("rs", 0, ["Hm", "."]),
        *expected.content_events("msg", 1, ["So: "]),
        *expected.call_events(2, 0, "add", ["{", '"a": 1}']),
        *expected.call_events(3, 1, "f", ["{}"]),
        *expected.content_events("msg", 4, ["!"]),
    ]
    assert response["output"] == [members["item"] for name, members in told if name == "response.output_item.done"]
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


async def test_whole_response(dialect):
    """It is the response of the stream's last event."""
    _, response = events_of(dialect, ANSWER)
    assert collected(dialect, ANSWER, FinishReason.STOP) == response


@pytest.mark.parametrize(
    ("words", "prefix"),
    [(["a"], "msg"), (["<think>a"], "rs"), (["b<tool_call>f{", '"a'], "fc"), (["b<tool_call>f"], "fc")],
)
async def test_only_the_last_item_is_incomplete(dialect, words, prefix):
    """The limit has cut it, whatever it is."""
    _, response = events_of(dialect, words, FinishReason.LENGTH)
    *before, last = response["output"]
    assert (last["status"], last["id"].partition("_")[0]) == ("incomplete", prefix)
    assert all(item["status"] == "completed" for item in before)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert collected(dialect, words, FinishReason.LENGTH) == response


async def test_response_without_anything_is_one_empty_message(dialect):
    """As without a parser."""
    told, response = events_of(dialect, ["<think>", "</think>"])
    assert told == [event for event in Expected(dialect).content_events("msg", 0, [""]) if "delta" not in event[0]]
    assert collected(dialect, ["<think>", "</think>"], FinishReason.STOP) == response


@pytest.mark.parametrize("words", [[], ["<think>"], ANSWER, ANSWER[:-1], ANSWER[:3], ANSWER[:1]], ids=len)
async def test_number_of_an_error(dialect, words):
    """It follows what was said, wherever the stream breaks off."""
    case = streamed(dialect, words, 0)
    case.reply.fail(Refusal(RefusalKind.UNAVAILABLE, "Gone.", code="engine_died"))
    events = parse_events(case.written())
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1].name == "response.failed"


FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "f{", "}", "<", "a", "b<think>c"]


@given(words=st.lists(st.sampled_from(FRAGMENTS), max_size=12), reason=st.sampled_from(FinishReason))
async def test_any_output_is_consistent(words, reason):
    """Numbers without a gap, items that begin and end once and in order, texts that their deltas make up."""
    dialect = make_responses_dialect(plan=PLAN)
    events = parse_events(streamed(dialect, words, reason).written())
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    begun = [event.data["output_index"] for event in events if event.name == "response.output_item.added"]
    assert begun == list(range(len(begun)))
    deltas, current, kind = "", -1, ""
    for event in events[2:-1]:
        current += event.name == "response.output_item.added"
        assert event.data["output_index"] == current
        if event.name == "response.output_item.added":
            deltas, kind = "", event.data["item"]["type"]
        deltas += event.data.get("delta", "")
        assert event.data.get("text", deltas) == event.data.get("arguments", deltas) == deltas
        if event.name == "response.output_item.done":
            assert event.data["item"]["type"] == kind
    for before, event in itertools.pairwise(events):
        assert (before.name == "response.output_item.done") <= (
            event.name in {"response.output_item.added", events[-1].name}
        )
