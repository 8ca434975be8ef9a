"""Clients that lose their connection and come back, or do not: who gets which stream, and for how long."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.faults.faults_parts import held, until_held
from tests.faults.resume_parts import (
    COMPLETION_BODY,
    EVENTS,
    LONG,
    check_whole,
    decode_chunked,
    first_events,
    get,
    hang_up,
    last_id,
    parse_events,
    post,
    read_head,
    read_rest,
    refusal,
    text_of,
)
from tests.raw_client import CHAT, COMPLETIONS, STREAMS, Client
from tests.server.server_parts import expected, until_rings

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start_server):
    """A synthetic model at 0.2 ms steps."""
    return start_server("--model", "synthetic", "--served-model-name", "s", "--synthetic-step-ms", "0.2")


@pytest.fixture(scope="module")
def patient_server(start_server):
    """1 ms steps, small rings, a window of 64 tokens, two keys."""
    options = ["--ring-capacity", "128", "--replay-window", "64", "--api-key", "one", "--api-key", "two"]
    return start_server("--model", "synthetic", "--synthetic-step-ms", "1", *options)


async def test_stream_waits_for_its_client_and_is_its_own(patient_server):
    """Without a client its tokens wait in its ring, then its sequence; only the same key gets it, and gets it all."""
    one, two = ("Authorization: Bearer one", "Authorization: Bearer two")
    label = "X-Request-Id: mine"
    body = LONG | {"max_tokens": 3000}

    async with Client(patient_server.address) as client:
        _, writer, headers, events = await first_events(client, post(COMPLETIONS, body, one, label), 3)
        assert headers["x-request-id"] == "mine"
        assert headers["x-stream-id"] == events[0].data["id"]
        hang_up(writer, reset=True)
        # Another stream takes as many steps as fill the ring of the first one for certain.
        await read_rest(client, post(COMPLETIONS, body | {"max_tokens": 1000}, two, label))
        assert (await held(patient_server)).rings == 1
        chunk_id = events[0].data["id"]
        path, last = f"{STREAMS}/{chunk_id}", str(last_id(events))
        ask: dict[str, Any] = {"Last_Event_ID": last}
        for key, where in (("two", path), ("one", f"{STREAMS}/cmpl-0")):
            assert await refusal(patient_server, "GET", where, key=key, **ask) == (410, "stream_gone")
        old_path = f"{COMPLETIONS}/{chunk_id}"  # OpenAI's for stored completions
        assert await refusal(patient_server, "GET", old_path, key="one", **ask) == (404, "not_found")
        assert await refusal(patient_server, "GET", path, **ask) == (401, "invalid_api_key")
        again: dict[str, Any] = {"X_Stream_Id": chunk_id, "body": body, **ask}
        assert await refusal(patient_server, "POST", CHAT, key="one", **again) == (410, "stream_gone")
        name = f"X-Stream-Id: {chunk_id}"
        events += await read_rest(client, post(COMPLETIONS, body, one, name, f"Last-Event-ID: {last}"))
        check_whole(events, expected("long", 3000), "length")
        assert len(events) == 3001
        await until_rings(patient_server, 0)
        # It has ended; of its end the last tokens can be had again, the earlier ones cannot.
        assert await refusal(patient_server, "GET", path, key="one") == (410, "replay_window_passed")
        assert await refusal(patient_server, "GET", path, key="one", Last_Event_ID="2934") == (
            410,
            "replay_window_passed",
        )
        assert await read_rest(client, get(path, one, "Last-Event-ID: 2935")) == events[-66:]
        assert await read_rest(client, get(path, one, "Last-Event-ID: 3001")) == []


async def test_requests_that_cannot_resume(server):
    """Ids that are none or were never sent, and requests that do not say which stream."""
    async with Client(server.address) as client:
        events = await read_rest(client, post(COMPLETIONS, COMPLETION_BODY))
        assert last_id(events) == 13
        ask: dict[str, Any] = {"X_Stream_Id": events[0].data["id"], "body": COMPLETION_BODY}
        for given in ("14", "-1", "x"):
            assert await refusal(server, "POST", COMPLETIONS, Last_Event_ID=given, **ask) == (
                400,
                "invalid_last_event_id",
            )
        nameless = await refusal(server, "POST", COMPLETIONS, body=COMPLETION_BODY, Last_Event_ID="1")
        assert nameless == (400, "missing_stream_id")
        anew = await read_rest(client, post(COMPLETIONS, COMPLETION_BODY, "Last-Event-ID: "))
        assert text_of(anew) == text_of(events), "an empty id is none"
        head = await asyncio.to_thread(httpx.head, f"{server.url}{STREAMS}/{events[0].data['id']}")
        assert (head.status_code, head.headers["allow"]) == (405, "GET")


async def test_newest_connection_takes_over(patient_server):
    """A client need not wait for the end of a half-dead connection: it is closed, and the new one goes on."""
    key = "Authorization: Bearer one"

    async with Client(patient_server.address) as client:
        reader, _, _, events = await first_events(client, post(COMPLETIONS, LONG, key), 3)
        path = f"{STREAMS}/{events[0].data['id']}"
        newer, writer, _, more = await first_events(client, get(path, key, f"Last-Event-ID: {last_id(events)}"), 200)
        assert more[0].id == last_id(events) + 1
        with contextlib.suppress(ConnectionResetError):
            assert not (await reader.read()).endswith(b"0\r\n\r\n"), "the response must not look complete"
        assert text_of(events + more) == expected("long", len(events + more))
        assert not newer.at_eof()
        writer.transport.abort()
        assert await refusal(patient_server, "GET", path, key="one", Last_Event_ID="100000") == (
            400,
            "invalid_last_event_id",
        )


async def test_client_that_does_not_come_back(start_server):
    """After the resume timeout the ring is free and the stream forgotten; one that did not ask frees it at once."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--resume-timeout", "0.3") as server:
        async with Client(server.address) as client:
            before = await held(server)
            streams = [await first_events(client, post(COMPLETIONS, LONG), 1) for _ in range(8)]
            plain = await client.open(COMPLETIONS, LONG | {"stream_options": None}, EVENTS)
            assert (await anext(plain.chunks())).startswith(b"data: ")
            for _, writer, _, _ in streams:
                hang_up(writer, reset=True)
            plain.abort()
            await until_held(server, before)
            for _, _, _, [first, *_] in streams:
                path = f"{STREAMS}/{first.data['id']}"
                assert await refusal(server, "GET", path, Last_Event_ID="1") == (410, "stream_gone")


async def test_deadline_while_the_client_is_away(start_server):
    """It ends the stream, and who comes back is told so behind the tokens."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--resume-timeout", "600") as server:
        async with Client(server.address) as client:
            for seconds in (0.5, 4, 30):  # a longer one if a stream did not begin in time
                deadline = datetime.now(UTC) + timedelta(seconds=seconds)
                reader, writer = await client.send_raw(post(COMPLETIONS, LONG | {"deadline": deadline.isoformat()}))
                status, headers = await read_head(reader)
                if status != 200:
                    continue
                raw = b""
                while not (events := parse_events(decode_chunked(raw))):
                    raw += await reader.read(4096)
                if "choices" in events[0].data:
                    break
            hang_up(writer, reset=True)
            while datetime.now(UTC) <= deadline:  # noqa: ASYNC110 - nothing happens meanwhile
                await asyncio.sleep(0.01)
            rest = await read_rest(
                client, get(f"{STREAMS}/{headers['x-stream-id']}", f"Last-Event-ID: {last_id(events)}")
            )
            text = text_of([*events, *rest])
            check_whole([*events, *rest], text, "deadline")
            assert expected("long", 8000).startswith(text)


async def test_ended_streams_are_bounded(start_server):
    """As many as --max-requests can be had again, the last ones."""
    options = ["--synthetic-step-ms", "0.2", "--max-requests", "64", "--resume-timeout", "600"]
    with start_server("--model", "synthetic", *options) as server:
        async with Client(server.address) as client:
            ids = []
            for _ in range(70):
                events = await read_rest(client, post(COMPLETIONS, COMPLETION_BODY))
                ids.append(events[0].data["id"])
            for number, chunk_id in enumerate(ids):
                path = f"{STREAMS}/{chunk_id}"
                if number < 6:
                    assert await refusal(server, "GET", path) == (410, "stream_gone")
                else:
                    check_whole(await read_rest(client, get(path)), expected("hi", 12), "length")


async def test_slow_reader_of_a_resumable_stream(start_server):
    """It is given up as any other; when it comes back it is told why, behind the tokens it has not got."""
    options = ["--synthetic-step-ms", "1", "--slow-reader-timeout", "0.5", "--replay-window", "8000"]
    with start_server("--model", "synthetic", *options) as server:
        async with Client(server.address) as client:
            before = await held(server)
            reader, _ = await client.send_raw(post(COMPLETIONS, LONG), receive_buffer=4096)
            await read_head(reader)
            await until_held(server, before)  # told, and then dropped
            raw = b""
            while not parse_events(decode_chunked(raw)):
                raw += await reader.read(256)
            events = parse_events(decode_chunked(raw))
            path = f"{STREAMS}/{events[0].data['id']}"
            *chunks, error, done = await read_rest(client, get(path, f"Last-Event-ID: {last_id(events)}"))
            assert text_of(events + chunks) == expected("long", len(events + chunks))
            assert (error.data["error"]["code"], done.data) == ("slow_reader", "[DONE]")
            assert error.id == done.id - 1 == len(events + chunks) + 1


async def test_engine_that_dies_while_nobody_listens(start_server):
    """Who comes back gets what the engine had published, and is told that it died."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        async with Client(server.address) as client:
            _, writer, _, events = await first_events(client, post(COMPLETIONS, LONG), 2)
            hang_up(writer, reset=True)
            await client.read(COMPLETIONS, {"prompt": "meanwhile", "max_tokens": 50})
            server.engine.kill()
            await asyncio.to_thread(server.wait_for_log, "the engine process died")
            path = f"{STREAMS}/{events[0].data['id']}"
            *chunks, error, done = await read_rest(client, get(path, f"Last-Event-ID: {last_id(events)}"))
            assert text_of(events + chunks) == expected("long", len(events + chunks))
            assert (error.data["error"]["code"], done.data) == ("engine_died", "[DONE]")
