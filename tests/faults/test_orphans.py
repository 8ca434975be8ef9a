"""Streams without a connection: what they cost the others, and who has one at all."""

import asyncio
from typing import Any

import pytest

from tests.faults.faults_parts import held, until_held
from tests.faults.resume_parts import (
    COMPLETION_BODY,
    EVENTS,
    LONG,
    check_whole,
    first_events,
    get,
    hang_up,
    last_id,
    post,
    read_head,
    read_rest,
    refusal,
)
from tests.raw_client import COMPLETIONS, STREAMS, Client
from tests.server.server_parts import counters, expected, until_rings

pytestmark = pytest.mark.anyio

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1", "--resume-timeout", "600"]
PLAIN = {"prompt": "plain", "max_tokens": 8000, "stream": True}


async def leave(server, client, number):
    """So many streams that can be resumed, each without its client after its first event: their names, oldest first.

    Each has left before the next one begins, so that their order is certain.
    """
    names = []
    for _ in range(number):
        _, writer, _, events = await first_events(client, post(COMPLETIONS, LONG), 1)
        hang_up(writer, reset=True)
        await until_still(server, client)
        names.append(events[0].data["id"])
    return names


async def until_still(server, client):
    """Wait until the engine computes for nobody but who is there: a stream of 20 tokens is all that it computes."""
    tokens = None
    while tokens != 20:
        before = counters(server)["tokens"]
        await client.read(COMPLETIONS, {"prompt": "x", "max_tokens": 20})
        tokens = counters(server)["tokens"] - before


async def is_told(client, name):
    """Whether the rest of a stream ends with the reason that its place was needed."""
    reader, writer = await client.send_raw(get(f"{STREAMS}/{name}"))
    assert (await read_head(reader))[0] == 200
    raw = b""
    while not raw.endswith(b"\r\n0\r\n\r\n"):
        raw += await reader.read(65536)
    hang_up(writer, reset=True)
    return b"stream_given_up" in raw and b"[DONE]" in raw


async def test_accepting_event_streams_changes_nothing(start_server):
    """A client that only says that it can read SSE gets no ids, and frees its place when it leaves."""
    with start_server(*SYNTHETIC) as server:
        async with Client(server.address) as client:
            before = await held(server)
            stream = await client.open(COMPLETIONS, PLAIN, EVENTS)
            assert "x-stream-id" not in stream.headers
            assert (await anext(stream.chunks())).startswith(b"data: ")
            stream.abort()
            await until_held(server, before)


async def test_stream_without_its_client_pauses_at_once(start_server):
    """Long before its ring is full; who comes back gets every token."""
    with start_server(*SYNTHETIC, "--ring-capacity", "8192") as server:
        async with Client(server.address) as client:
            body = LONG | {"max_tokens": 1000}
            _, writer, _, events = await first_events(client, post(COMPLETIONS, body), 3)
            hang_up(writer, reset=True)
            await until_still(server, client)
            assert (await held(server)).rings == 1, "it must not have ended"
            path = f"{STREAMS}/{events[0].data['id']}"
            events += await read_rest(client, get(path, f"Last-Event-ID: {last_id(events)}"))
            check_whole(events, expected("long", 1000), "length")


async def test_streams_without_clients_refuse_nobody(start_server):
    """With every place taken by them, new requests are taken, one for each that is given up, and then it is full."""
    with start_server(*SYNTHETIC, "--max-requests", "64") as server:
        async with Client(server.address) as client:
            names = await leave(server, client, 62)
            streams = await asyncio.gather(*[client.open(COMPLETIONS, PLAIN) for _ in range(12)])
            assert {stream.status for stream in streams} == {200}
            assert counters(server)["cancels"] == 10
            assert all([await is_told(client, name) for name in names[:10]]), "the oldest are given up"
            more = await asyncio.gather(*[client.open(COMPLETIONS, PLAIN) for _ in range(60)])
            assert [stream.status for stream in more].count(200) == 52
            assert [stream.status for stream in more].count(429) == 8
            for stream in [*streams, *more]:
                stream.abort()
            await until_rings(server, 0)


@pytest.mark.parametrize("left", ["before", "after"])
async def test_stream_without_its_client_does_not_delay_a_shutdown(start_server, left):
    """It ends at once, whether its client was gone before or leaves while the server waits for open streams."""
    with start_server(*SYNTHETIC, "--drain-timeout", "600") as server:
        async with Client(server.address) as client:
            _, writer, _, _ = await first_events(client, post(COMPLETIONS, LONG), 1)
            if left == "before":
                hang_up(writer, reset=True)
                await until_still(server, client)
            server.process.terminate()
            if left == "after":
                await asyncio.to_thread(server.wait_for_log, "stopping; open requests")
                hang_up(writer, reset=True)
            assert await asyncio.to_thread(server.wait) == 0
        assert "Traceback" not in server.log.read_text()


async def test_label_is_no_name(start_server):
    """Two clients may choose the same X-Request-Id; neither gets the other's stream by it, nor ends its connection."""
    ask: dict[str, Any] = {"body": LONG, "Last_Event_ID": "1", "X_Request_Id": "1"}
    with start_server(*SYNTHETIC) as server:
        async with Client(server.address) as client:
            label = "X-Request-Id: 1"
            _, first, _, events = await first_events(client, post(COMPLETIONS, LONG, label), 2)
            reader, _, _, _ = await first_events(client, post(COMPLETIONS, LONG, label), 1)
            assert await refusal(server, "POST", COMPLETIONS, **ask) == (410, "stream_gone")
            hang_up(first, reset=True)
            await until_rings(server, 2)
            assert await refusal(server, "POST", COMPLETIONS, **ask) == (410, "stream_gone")
            assert await refusal(server, "GET", f"{STREAMS}/1", Last_Event_ID="1") == (410, "stream_gone")
            for _ in range(100):
                await reader.readuntil(b"\n\n")
            name, last = f"X-Stream-Id: {events[0].data['id']}", f"Last-Event-ID: {last_id(events)}"
            _, _, headers, more = await first_events(client, post(COMPLETIONS, LONG, name, last, label), 3)
            assert headers["x-stream-id"] == events[0].data["id"]
            assert more[0].id == last_id(events) + 1


@pytest.mark.parametrize("by", ["POST", "GET"])
async def test_request_id_that_the_server_made_is_a_name(start_server, by):
    """Nobody else can know it."""
    with start_server(*SYNTHETIC) as server:
        async with Client(server.address) as client:
            reader, writer = await client.send_raw(post(COMPLETIONS, COMPLETION_BODY))
            _, headers = await read_head(reader)
            writer.transport.abort()
            made = headers["x-request-id"]
            again = (
                get(f"{STREAMS}/{made}", "Last-Event-ID: 0")
                if by == "GET"
                else post(COMPLETIONS, COMPLETION_BODY, f"X-Request-Id: {made}", "Last-Event-ID: 0")
            )
            check_whole(await read_rest(client, again), expected("hi", 12), "length")
