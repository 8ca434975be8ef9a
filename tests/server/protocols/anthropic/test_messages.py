"""Messages of a running server: the order of events, why an answer ends, and Anthropic's own client."""

from __future__ import annotations

import socket

import anthropic
import httpx
import pytest

from tests.raw_client import Client, request_bytes
from tests.server.protocols.dialects_parts import HI, HI_PROMPT, MESSAGES, OF_MESSAGES, parse_events, read_events
from tests.server.server_parts import PATIENCE, expected

pytestmark = pytest.mark.anyio

TEXT = expected(HI_PROMPT, 20)


@pytest.fixture
def client(synthetic_server):
    """Anthropic's, which finds an error at once."""
    with anthropic.Anthropic(base_url=synthetic_server.url, api_key="none", max_retries=0, timeout=PATIENCE) as ours:
        yield ours


def post(server, body, path=MESSAGES, **headers):
    """The JSON of an answer."""
    answer = httpx.post(server.url + path, json=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_stream_event_by_event(synthetic_server):
    """Head and body as Anthropic documents them; the end of the response follows the last event at once."""
    body = {"model": "synthetic", "max_tokens": 3, "messages": HI, "stream": True, "cache_salt": "event by event"}
    headers = ["X-Request-Id: mine", "anthropic-version: 2023-06-01", "anthropic-beta: some-beta-2030-01-01"]
    with (
        socket.create_connection(synthetic_server.address, timeout=PATIENCE) as client,
        client.makefile("rb") as answer,
    ):
        client.sendall(request_bytes(f"{MESSAGES}?beta=true", body, *headers))
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        head = dict(line.strip().split(b": ") for line in iter(answer.readline, b"\r\n"))
        received = b""
        while size := int(answer.readline(), 16):
            received += answer.read(size)
            assert answer.readline() == b"\r\n"
        assert answer.readline() == b"\r\n"
    assert head[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert head[b"request-id"] == head[b"x-request-id"] == b"mine"
    assert b"warning" not in head
    events = parse_events(received)
    message = events[0].data["message"]
    assert message.pop("id").startswith("msg_")
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "input_tokens": len(HI_PROMPT)}
    assert [event.data for event in events] == [
        {
            "type": "message_start",
            "message": {
                "type": "message",
                "role": "assistant",
                "model": "synthetic",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage | {"output_tokens": 0},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": character}}
            for character in TEXT[:3]
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": usage | {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ]


def test_answer_member_by_member(synthetic_server):
    """The whole Message, as Anthropic documents it."""
    answer = post(synthetic_server, {"max_tokens": 3, "messages": HI, "cache_salt": "member by member"})
    assert answer.pop("id").startswith("msg_")
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "synthetic",
        "content": [{"type": "text", "text": TEXT[:3]}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(HI_PROMPT),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
        },
    }


@pytest.mark.parametrize(
    ("fields", "stop_reason", "stop_sequence", "text"),
    [
        ({}, "max_tokens", None, TEXT),
        ({"stop_sequences": ["\x00", TEXT[7:9], TEXT[8:12]]}, "stop_sequence", TEXT[7:9], TEXT[:7]),
        ({"stop_sequences": [TEXT[:2]]}, "stop_sequence", TEXT[:2], ""),
        ({"stop_sequences": [TEXT[18:20] + "x"]}, "max_tokens", None, TEXT),
        ({"stop_token_ids": [ord(TEXT[4])]}, "end_turn", None, TEXT[: TEXT.index(TEXT[4])]),
    ],
    ids=["the limit", "a stop sequence", "at once", "half a stop sequence", "the model"],
)
async def test_why_an_answer_ends(synthetic_server, fields, stop_reason, stop_sequence, text):
    """And which of the stop sequences it was, which is never shown; streamed and whole."""
    body = OF_MESSAGES.body(20, **fields)
    answer = post(synthetic_server, body)
    assert (answer["stop_reason"], answer["stop_sequence"]) == (stop_reason, stop_sequence)
    assert answer["content"] == [{"type": "text", "text": text}]
    async with Client(synthetic_server.address) as client:
        *events, delta, _ = await read_events(client, MESSAGES, body)
    assert delta.data["delta"] == {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
    assert delta.data["usage"] == answer["usage"] | {
        name: delta.data["usage"][name] for name in ("input_tokens", "cache_read_input_tokens")
    }
    assert OF_MESSAGES.text(events) == text


def test_a_prefill_is_continued(synthetic_server):
    """The answer begins where the last turn of the assistant ends, and does not repeat it."""
    turns = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    answer = post(synthetic_server, {"max_tokens": 5, "messages": turns, "cache_salt": "prefill"})
    prompt = "user: hi\nassistant: It is"
    assert answer["content"][0]["text"] == expected(prompt, 5)
    assert answer["usage"]["input_tokens"] == len(prompt)


def test_tokens_are_counted_as_they_would_be_sent(synthetic_server):
    """With system prompt, blocks and a prefill; what would not fit the model's length is counted too."""
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    turns = [*HI, {"role": "assistant", "content": "no"}]
    for body in ({"messages": HI}, {"messages": HI, "system": system}, {"messages": turns}):
        counted = post(synthetic_server, body, f"{MESSAGES}/count_tokens")
        usage = post(synthetic_server, body | {"max_tokens": 1})["usage"]
        assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    long = {"messages": [{"role": "user", "content": "x" * 9000}]}
    assert post(synthetic_server, long, f"{MESSAGES}/count_tokens") == {
        "input_tokens": 9000 + len("user: \nassistant: ")
    }


def test_the_client_gets_a_message(client):
    """With everything that rbee takes."""
    message = client.messages.create(
        model="synthetic",
        max_tokens=20,
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "three"},
            {"role": "user", "content": "four"},
        ],
        stop_sequences=["never"],
        metadata={"user_id": "me"},
        service_tier="standard_only",
        thinking={"type": "disabled"},
        tools=[],
        tool_choice={"type": "none"},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 5},  # which it has no arguments for any more
    )
    prompt = "system: be brief\nuser: one\ntwo\nassistant: three\nuser: four\nassistant: "
    [block] = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == expected(prompt, 20)
    assert (message.stop_reason, message.role, message.model) == ("max_tokens", "assistant", "synthetic")
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == len(prompt)


def test_the_client_streams(client):
    """Its helper adds up the events to the same message, with the usage of the end."""
    with client.messages.stream(
        model="synthetic", max_tokens=20, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert pieces == list(TEXT)
    [block] = message.content
    assert isinstance(block, anthropic.types.TextBlock)
    assert block.text == TEXT
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 20)
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) == len(HI_PROMPT)


async def test_the_async_client(synthetic_server):
    """The same, and the count."""
    async with anthropic.AsyncAnthropic(base_url=synthetic_server.url, api_key="none", timeout=PATIENCE) as ours:
        count = await ours.messages.count_tokens(model="synthetic", messages=[{"role": "user", "content": "hi"}])
        assert count.input_tokens == len(HI_PROMPT)
        stream = await ours.messages.create(
            model="synthetic", max_tokens=5, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        kinds = [event.type async for event in stream]
    deltas = ["content_block_delta"] * 5
    start, end = ["message_start", "content_block_start"], ["content_block_stop", "message_delta", "message_stop"]
    assert kinds == [*start, *deltas, *end]  # it keeps the ping to itself


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "'other' is not served"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, anthropic.BadRequestError, "of Anthropic's own"),
        ({"tool_choice": {"type": "any"}}, anthropic.BadRequestError, "there are no tools"),
        ({"extra_body": {"temperature": -1.0}}, anthropic.BadRequestError, "temperature"),
    ],
)
def test_the_client_raises_its_errors(client, fields, error, says):
    """Of the right kind, with our sentence and the id of the request."""
    body = {"model": "synthetic", "max_tokens": 20, "messages": HI} | fields
    with pytest.raises(error, match=says) as caught:
        client.messages.create(**body)
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    assert caught.value.body["error"]["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize("stream", [False, True])
def test_the_tool_runner_goes_on_without_a_thread(client, stream):
    """It asks for one first. The refusal has Anthropic's word for it, and it sends the whole conversation then."""
    with pytest.raises(anthropic.BadRequestError, match="thread is not supported") as caught:
        client.messages.create(model="synthetic", max_tokens=20, messages=HI, extra_body={"thread": {"type": "create"}})
    assert caught.value.response.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}

    ran = []

    @anthropic.beta_tool
    def look() -> str:
        """Look."""
        ran.append(look)
        return "nothing"

    turns = client.beta.messages.tool_runner(
        model="synthetic", max_tokens=20, messages=HI, tools=[look], tool_choice={"type": "none"}, stream=stream
    )
    [message] = [turn.get_final_message() if stream else turn for turn in turns]
    assert message.content[0].text == TEXT
    assert ran == []


def test_the_client_learns_of_an_error_in_mid_stream(start_server):
    """What came before it was shown; the error is the kind that its status has."""
    with (
        start_server("--model", "synthetic", "--synthetic-step-ms", "20") as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=PATIENCE) as ours,
    ):
        hi = anthropic.types.UserMessageParam(role="user", content="hi")
        with ours.messages.stream(model="synthetic", max_tokens=8000, messages=[hi]) as stream:
            seen = [next(stream.text_stream)]
            server.engine.kill()
            with pytest.raises(anthropic.APIStatusError, match="engine process died"):
                seen.extend(stream.text_stream)
        assert "".join(seen) == expected(HI_PROMPT, len(seen))
