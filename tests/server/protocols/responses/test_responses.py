"""Responses of a running server: the order of events, how an answer ends, and OpenAI's own client."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai.types.responses import Response

from tests.raw_client import Client
from tests.server.protocols.dialects_parts import HI_PROMPT, OF_RESPONSES, RESPONSES, read_events
from tests.server.server_parts import PATIENCE, expected

pytestmark = pytest.mark.anyio

TEXT = expected(HI_PROMPT, 20)
USAGE = {
    "input_tokens": len(HI_PROMPT),
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": len(HI_PROMPT) + 3,
}


@pytest.fixture
def client(synthetic_server):
    """OpenAI's, which finds an error at once."""
    with openai.OpenAI(base_url=synthetic_server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE) as ours:
        yield ours


def post(server, body):
    """The JSON of an answer."""
    answer = httpx.post(server.url + RESPONSES, json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def without_answer(response, **changed):
    """A response object as it is before its answer, but for what is changed."""
    return response | {
        "status": "in_progress", "output": [], "usage": None, "incomplete_details": None, "completed_at": None,
    } | changed  # fmt: skip


async def test_stream_event_by_event(synthetic_server):
    """Numbered from 0, in the order of OpenAI's reference; the response ends with its last event, without [DONE]."""
    body = {"model": "synthetic", "max_output_tokens": 3, "input": "hi", "metadata": {"a": "b"}, "cache_salt": "event"}
    async with Client(synthetic_server.address) as client:
        events = await read_events(client, RESPONSES, body)
    assert [event.data["sequence_number"] for event in events] == list(range(11))
    last = events[-1].data["response"]
    [item] = last["output"]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": TEXT[:3], "annotations": [], "logprobs": []}
    assert item == {
        "id": item["id"], "type": "message", "status": "incomplete", "role": "assistant", "content": [part],
    }  # fmt: skip
    begun = item | {"status": "in_progress", "content": []}
    expected_events = [
        ("response.created", {"response": without_answer(last)}),
        ("response.in_progress", {"response": without_answer(last)}),
        ("response.output_item.added", {"output_index": 0, "item": begun}),
        ("response.content_part.added", place | {"part": part | {"text": ""}}),
        *(("response.output_text.delta", place | {"delta": character, "logprobs": []}) for character in TEXT[:3]),
        ("response.output_text.done", place | {"text": TEXT[:3], "logprobs": []}),
        ("response.content_part.done", place | {"part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.incomplete", {"response": last}),
    ]
    assert [
        (event.name, {name: event.data[name] for name in event.data if name not in ("type", "sequence_number")})
        for event in events
    ] == expected_events
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert last["usage"] == USAGE
    assert last["metadata"] == {"a": "b"}


def test_answer_member_by_member(synthetic_server):
    """It has what OpenAI's type wants, and says what was asked."""
    asked = {"max_output_tokens": 3, "instructions": None, "temperature": 0.5, "top_p": 0.9, "user": "me"}
    unsaid = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "cache_salt": "member"}
    answer = post(synthetic_server, unsaid | asked)
    Response.model_validate(answer, strict=True)
    assert answer["id"].startswith("resp_")
    assert answer["usage"] == USAGE
    assert answer["output"][0]["content"][0]["text"] == TEXT[:3]
    assert asked.items() <= answer.items()
    constant = {"object": "response", "model": "synthetic", "store": False, "background": False, "error": None}
    constant |= {"tools": [], "tool_choice": "auto", "previous_response_id": None, "truncation": "disabled"}
    assert constant.items() <= answer.items()


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"stop_token_ids": [ord(TEXT[4])]}, TEXT[: TEXT.index(TEXT[4])]), ({"stop": TEXT[4:6]}, TEXT[:4])],
    ids=["a token", "a stop string"],
)
async def test_an_answer_that_is_not_cut_is_complete(synthetic_server, fields, text):
    """Streamed and whole; it has the time of its end."""
    body = OF_RESPONSES.body(20, **fields)
    async with Client(synthetic_server.address) as client:
        *_, last = await read_events(client, RESPONSES, body)
    assert last.name == "response.completed"
    for response in (last.data["response"], post(synthetic_server, body)):
        assert (response["status"], response["incomplete_details"]) == ("completed", None)
        assert isinstance(response["completed_at"], int)
        [item] = response["output"]
        assert (item["status"], item["content"][0]["text"]) == ("completed", text)


def test_the_client_gets_a_response(client):
    """With everything that rbee takes; what it answered can be sent back as it is."""
    first = client.responses.create(
        model="synthetic",
        instructions="be brief",
        input="one",
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.9,
        store=False,
        metadata={"a": "b"},
        text={"format": {"type": "text"}},
        tools=[],
        tool_choice="none",
        truncation="disabled",
        include=[],
    )
    prompt = "system: be brief\nuser: one\nassistant: "
    assert first.output_text == expected(prompt, 5)
    assert (first.status, first.metadata) == ("incomplete", {"a": "b"})
    second = client.responses.create(
        model="synthetic",
        input=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            *(item.to_dict() for item in first.output),
            {"role": "user", "content": "two"},
        ],
        max_output_tokens=5,
    )
    prompt = f"{prompt}{first.output_text}\nuser: two\nassistant: "
    assert second.output_text == expected(prompt, 5)
    assert second.usage.input_tokens == len(prompt)


def test_the_client_streams(client):
    """Its helper adds the events up; the types of all of them are known to it."""
    stop = {"stop_token_ids": [ord(TEXT[-1])]}
    whole = TEXT[: TEXT.index(TEXT[-1])]
    with client.responses.stream(model="synthetic", input="hi", max_output_tokens=20, extra_body=stop) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert deltas == list(whole)
    assert (response.output_text, response.status) == (whole, "completed")


async def test_the_async_client(synthetic_server):
    """Plain events."""
    async with openai.AsyncOpenAI(base_url=synthetic_server.url + "/v1", api_key="none", timeout=PATIENCE) as ours:
        stream = await ours.responses.create(model="synthetic", input="hi", max_output_tokens=5, stream=True)
        events = [event async for event in stream]
    assert [type(event).__name__ for event in events[4:9]] == ["ResponseTextDeltaEvent"] * 5
    assert [event.sequence_number for event in events] == list(range(13))
    assert events[-1].type == "response.incomplete"


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"previous_response_id": "resp_1"}, openai.BadRequestError, "previous_response_id"),
        ({"input": "x" * 9000}, openai.BadRequestError, "input"),
    ],
)
def test_the_client_raises_its_errors(client, fields, error, param):
    """Of the right kind, with the field that is to blame."""
    with pytest.raises(error) as caught:
        client.responses.create(**{"model": "synthetic", "input": "hi"} | fields)
    assert caught.value.param == param
