"""Clients that lose their connection and come back: token-exact, over real sockets, wherever the cut was."""

import asyncio
import contextlib
import json
import re
import socket
import struct
from typing import Any, NamedTuple

import httpx
import pytest

from tests.faults.faults_parts import PATIENCE, expected, held, until_held, until_rings
from tests.raw_client import CHAT, COMPLETIONS, Client, request_bytes

EVENTS = "Accept: text/event-stream"
CLOSE = "Connection: close"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the kernel sends RST at once instead of FIN
LONG = {"prompt": "long", "max_tokens": 8000, "stream": True}
WORKERS = 8


class Event(NamedTuple):
    """One SSE event: its id and its data, parsed JSON or "[DONE]"."""

    id: int
    data: object


def decode_chunked(raw):
    """The body in the raw bytes of a response, as far as they have come."""
    body = b""
    while (size := raw.partition(b"\r\n")) and size[1]:
        length = int(size[0], 16)
        body += size[2][:length]
        raw = size[2][length + 2 :]
    return body


def parse_events(body):
    """What an SSE parser makes of a body that may be cut anywhere: an event ends with a blank line, else it is none."""
    events: list[Any] = []
    for block in body.split(b"\n\n")[:-1]:
        if not block.startswith(b":"):
            number, data = re.fullmatch(rb"id: (\d+)\ndata: (.*)", block).groups()
            events.append(Event(int(number), "[DONE]" if data == b"[DONE]" else json.loads(data)))
    return events


def last_id(events):
    """The id of the last event that a client has; 0 if it has none."""
    return events[-1].id if events else 0


def text_of(events):
    """What the chunks say, of either kind."""
    choices = [choice for event in events if event.data != "[DONE]" for choice in event.data.get("choices", [])]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def check_whole(events, text, finish):
    """These are all events of one stream, each once."""
    assert text_of(events) == text
    *chunks, done = [event.data for event in events]
    assert done == "[DONE]"
    assert "[DONE]" not in chunks
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + [finish]
    roles = ["role" in choice["delta"] for chunk in chunks for choice in chunk["choices"] if "delta" in choice]
    assert not any(roles[1:])
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))


def hang_up(writer, *, reset):
    """Drop a connection: with a reset, or half of it with a polite end, while the other half stays open."""
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.write_eof()


async def read_head(reader):
    """Status and headers of a response."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:-2])


async def read_cut(client, request, size):
    """The first `size` bytes behind the head of a response, or all there are; and the connection."""
    reader, writer = await client.send_raw(request)
    status, _ = await read_head(reader)
    assert status == 200
    try:
        return await reader.readexactly(size), writer
    except asyncio.IncompleteReadError as everything:
        return everything.partial, writer


async def read_rest(client, request):
    """All events of a response; none if there are none to come (204)."""
    reader, writer = await client.send_raw(request)
    status, _ = await read_head(reader)
    assert status in {200, 204}
    events = parse_events(decode_chunked(await reader.read()))
    writer.close()
    return events


def get(path, *headers):
    """What EventSource sends."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", EVENTS, CLOSE, *headers, "", ""]).encode()


def post(path, body, *headers):
    """What fetch-event-source sends."""
    return request_bytes(path, body, EVENTS, CLOSE, *headers)


@pytest.fixture(scope="module")
def server(start_server):
    """A synthetic model at 0.2 ms steps."""
    return start_server("--model", "synthetic", "--served-model-name", "s", "--synthetic-step-ms", "0.2")


CHAT_BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "stream": True}
COMPLETION_BODY = {"prompt": "hi", "max_tokens": 12, "stream": True}
CASES = pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [(CHAT, CHAT_BODY, "user: hi\nassistant: "), (COMPLETIONS, COMPLETION_BODY, "hi")],
    ids=["chat", "completions"],
)


@CASES
def test_cut_at_every_byte(server, path, body, prompt):
    """Wherever a connection breaks, however it breaks and however the client comes back, it gets exactly the rest."""

    async def attempt(client, cut):
        name = f"X-Request-Id: {path}-{cut}"
        raw, writer = await read_cut(client, post(path, body, name), cut)
        hang_up(writer, reset=cut % 2)
        events = parse_events(decode_chunked(raw))
        if cut % 4 < 2 and events:
            chunk_id = events[0].data["id"]
            again = get(f"{path}/{chunk_id}", f"Last-Event-ID: {last_id(events)}")
        else:
            again = post(path, body, name, f"Last-Event-ID: {last_id(events)}")
        rest = await read_rest(client, again)
        writer.transport.abort()
        check_whole(events + rest, expected(prompt, 12), "length")
        return len(raw)

    async def worker(cuts):
        async with Client(server.address) as client:
            return [await attempt(client, cut) for cut in cuts]

    async def run():
        async with Client(server.address) as client:
            before = await held(server)
            whole = await read_rest(client, post(path, body))
        frames = [len(f"id: {event.id}\ndata: \n\n") + len(json.dumps(event.data)) for event in whole]
        longest = sum(frames) + 16 * len(frames)  # each in a chunk of its own
        cuts = iter(range(longest))
        lengths = await asyncio.gather(*(worker(cuts) for _ in range(WORKERS)))
        assert max(max(length) for length in lengths) < longest - 1, "the last cuts should have been behind the end"
        await until_held(server, before)

    asyncio.run(run())


@CASES
def test_cut_again_and_again_while_tokens_come(start_server, path, body, prompt):
    """A client whose connections break after some bytes each gets there too, each token once."""
    body = body | {"max_tokens": 60}

    async def attempt(client, size):
        name = f"X-Request-Id: again-{size}"
        events, raw = [], b""
        while not events or events[-1].data != "[DONE]":
            headers = [f"Last-Event-ID: {last_id(events)}"] if raw else []
            raw, writer = await read_cut(client, post(path, body, name, *headers), size)
            hang_up(writer, reset=size % 2)
            events += parse_events(decode_chunked(raw))
        check_whole(events, expected(prompt, 60), "length")

    async def run(server):
        async with Client(server.address) as client:
            await asyncio.gather(*(attempt(client, 300 + 97 * number) for number in range(16)))

    with start_server("--model", "synthetic", "--synthetic-step-ms", "5") as server:
        asyncio.run(run(server))


def test_text_that_is_not_ascii(default_server):
    """A character of several bytes and tokens, cut in the middle or between its tokens, comes whole and once."""
    body = {"prompt": "Bees:" + " 🐝" * 11, "max_tokens": 12, "temperature": 0, "stream": True}

    async def attempt(client, cut):  # while the model runs
        name = f"X-Request-Id: bees-{cut}"
        raw, writer = await read_cut(client, post(COMPLETIONS, body, name), cut)
        hang_up(writer, reset=cut % 2)
        got = parse_events(decode_chunked(raw))
        rest = await read_rest(client, post(COMPLETIONS, body, name, f"Last-Event-ID: {last_id(got)}"))
        check_whole(got + rest, " 🐝" * 4, "length")

    async def run():
        async with Client(default_server.address) as client:
            raw, _ = await read_cut(client, post(COMPLETIONS, body), 10**6)
            whole = decode_chunked(raw)
            events = parse_events(whole)
            check_whole(events, " 🐝" * 4, "length")
            path = f"{COMPLETIONS}/{events[0].data['id']}"
            for cut in range(len(whole) + 1):  # after its end
                got = parse_events(whole[:cut])
                assert got + await read_rest(client, get(path, f"Last-Event-ID: {last_id(got)}")) == events
            bee = raw.index("🐝".encode())
            await asyncio.gather(*(attempt(client, cut) for cut in (bee, bee + 1, bee + 3, bee + 500)))

    asyncio.run(run())


async def first_events(client, request, number):
    """The connection, headers and first events of a stream."""
    reader, writer = await client.send_raw(request)
    status, headers = await read_head(reader)
    assert status == 200
    raw = b""
    while len(events := parse_events(decode_chunked(raw))) < number:
        raw += await reader.read(4096)
    return reader, writer, headers, events


async def refusal(server, method, path, *, key=None, body=None, **headers):
    """Status and code of a refusal."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        names["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        answer = await client.request(method, path, json=body, headers=names)
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture(scope="module")
def patient_server(start_server):
    """1 ms steps, small rings, a window of 64 tokens, two keys."""
    options = ["--ring-capacity", "128", "--replay-window", "64", "--api-key", "one", "--api-key", "two"]
    return start_server("--model", "synthetic", "--synthetic-step-ms", "1", *options)


def test_stream_waits_for_its_client_and_is_its_own(patient_server):
    """Without a client its tokens wait in its ring, then its sequence; only the same key gets it, and gets it all."""
    one, two = ("Authorization: Bearer one", "Authorization: Bearer two")
    name = "X-Request-Id: mine"
    body = LONG | {"max_tokens": 3000}

    async def run():
        async with Client(patient_server.address) as client:
            _, writer, headers, events = await first_events(client, post(COMPLETIONS, body, one, name), 3)
            assert headers["x-request-id"] == "mine"
            hang_up(writer, reset=True)
            # Another stream takes as many steps as fill the ring of the first one for certain.
            await read_rest(client, post(COMPLETIONS, body | {"max_tokens": 1000}, two, name))
            assert (await held(patient_server)).rings == 1
            chunk_id = events[0].data["id"]
            path, last = f"{COMPLETIONS}/{chunk_id}", str(last_id(events))
            ask = {"Last_Event_ID": last}
            for key, where in (("two", path), ("one", f"{CHAT}/{chunk_id}"), ("one", f"{COMPLETIONS}/cmpl-0")):
                assert await refusal(patient_server, "GET", where, key=key, **ask) == (410, "stream_gone")
            assert await refusal(patient_server, "GET", path, **ask) == (401, "invalid_api_key")
            again = {"X_Request_Id": "mine", "body": body, **ask}
            assert await refusal(patient_server, "POST", CHAT, key="one", **again) == (410, "stream_gone")
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

    asyncio.run(run())


def test_requests_that_cannot_resume(server):
    """Ids that are none or were never sent, and requests that do not say which stream."""

    async def run():
        async with Client(server.address) as client:
            events = await read_rest(client, post(COMPLETIONS, COMPLETION_BODY, "X-Request-Id: r"))
            assert last_id(events) == 13
            ask = {"X_Request_Id": "r", "body": COMPLETION_BODY}
            for given in ("14", "-1", "x", ""):
                assert await refusal(server, "POST", COMPLETIONS, Last_Event_ID=given, **ask) == (
                    400,
                    "invalid_last_event_id",
                )
            for name in ({}, {"X_Request_Id": "not a sane one"}):
                assert await refusal(server, "POST", COMPLETIONS, body=COMPLETION_BODY, Last_Event_ID="1", **name) == (
                    400,
                    "missing_request_id",
                )
            head = await asyncio.to_thread(httpx.head, f"{server.url}{COMPLETIONS}/{events[0].data['id']}")
            assert (head.status_code, head.headers["allow"]) == (405, "GET")

    asyncio.run(run())


def test_newest_connection_takes_over(patient_server):
    """A client need not wait for the end of a half-dead connection: it is closed, and the new one goes on."""
    key = "Authorization: Bearer one"

    async def run():
        async with Client(patient_server.address) as client:
            reader, _, _, events = await first_events(client, post(COMPLETIONS, LONG, key), 3)
            path = f"{COMPLETIONS}/{events[0].data['id']}"
            newer, writer, _, more = await first_events(
                client, get(path, key, f"Last-Event-ID: {last_id(events)}"), 200
            )
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

    asyncio.run(run())


def test_client_that_does_not_come_back(start_server):
    """After the resume timeout the ring is free and the stream forgotten; without ids it is free at once."""

    async def run(server):
        async with Client(server.address) as client:
            before = await held(server)
            streams = [await first_events(client, post(COMPLETIONS, LONG), 1) for _ in range(8)]
            body = LONG | {"stream_options": {"resumable": False}}
            plain = await client.open(COMPLETIONS, body, EVENTS)
            assert (await anext(plain.chunks())).startswith(b"data: ")
            for _, writer, _, _ in streams:
                hang_up(writer, reset=True)
            plain.abort()
            await until_held(server, before)
            for _, _, _, [first, *_] in streams:
                path = f"{COMPLETIONS}/{first.data['id']}"
                assert await refusal(server, "GET", path, Last_Event_ID="1") == (410, "stream_gone")

    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--resume-timeout", "0.3") as server:
        asyncio.run(run(server))


def test_ended_streams_are_bounded(start_server):
    """As many as --max-requests can be had again, the last ones."""

    async def run(server):
        async with Client(server.address) as client:
            ids = []
            for _ in range(70):
                events = await read_rest(client, post(COMPLETIONS, COMPLETION_BODY))
                ids.append(events[0].data["id"])
            for number, chunk_id in enumerate(ids):
                path = f"{COMPLETIONS}/{chunk_id}"
                if number < 6:
                    assert await refusal(server, "GET", path) == (410, "stream_gone")
                else:
                    check_whole(await read_rest(client, get(path)), expected("hi", 12), "length")

    options = ["--synthetic-step-ms", "0.2", "--max-requests", "64", "--resume-timeout", "600"]
    with start_server("--model", "synthetic", *options) as server:
        asyncio.run(run(server))


def test_slow_reader_of_a_resumable_stream(start_server):
    """It is given up as any other; when it comes back it is told why, behind the tokens it has not got."""

    async def run(server):
        async with Client(server.address) as client:
            before = await held(server)
            reader, _ = await client.send_raw(post(COMPLETIONS, LONG), receive_buffer=4096)
            await read_head(reader)
            await until_held(server, before)  # told, and then dropped
            raw = b""
            while not parse_events(decode_chunked(raw)):
                raw += await reader.read(256)
            events = parse_events(decode_chunked(raw))
            path = f"{COMPLETIONS}/{events[0].data['id']}"
            *chunks, error, done = await read_rest(client, get(path, f"Last-Event-ID: {last_id(events)}"))
            assert text_of(events + chunks) == expected("long", len(events + chunks))
            assert (error.data["error"]["code"], done.data) == ("slow_reader", "[DONE]")
            assert error.id == done.id - 1 == len(events + chunks) + 1

    options = ["--synthetic-step-ms", "1", "--slow-reader-timeout", "0.5", "--replay-window", "8000"]
    with start_server("--model", "synthetic", *options) as server:
        asyncio.run(run(server))


def test_engine_that_dies_while_nobody_listens(start_server):
    """Who comes back gets what the engine had published, and is told that it died."""

    async def run(server):
        async with Client(server.address) as client:
            _, writer, _, events = await first_events(client, post(COMPLETIONS, LONG), 2)
            hang_up(writer, reset=True)
            await client.read(COMPLETIONS, {"prompt": "meanwhile", "max_tokens": 50})
            server.engine.kill()
            await asyncio.to_thread(server.wait_for_log, "the engine process died")
            path = f"{COMPLETIONS}/{events[0].data['id']}"
            *chunks, error, done = await read_rest(client, get(path, f"Last-Event-ID: {last_id(events)}"))
            assert len(events + chunks) > 50
            assert text_of(events + chunks) == expected("long", len(events + chunks))
            assert (error.data["error"]["code"], done.data) == ("engine_died", "[DONE]")

    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        asyncio.run(run(server))


@pytest.mark.parametrize("comes_back", [True, False])
def test_server_that_stops_while_a_client_is_away(start_server, comes_back):
    """A stopping server lets it finish its stream, and waits for it no longer than for any other."""
    body = LONG | {"max_tokens": 400}

    async def run(server):
        async with Client(server.address) as client:
            _, writer, _, events = await first_events(client, post(COMPLETIONS, body), 2)
            hang_up(writer, reset=True)
            server.process.terminate()
            await asyncio.to_thread(server.wait_for_log, "stopping; open requests")
            if comes_back:
                path = f"{COMPLETIONS}/{events[0].data['id']}"
                rest = await read_rest(client, get(path, f"Last-Event-ID: {last_id(events)}"))
                check_whole(events + rest, expected("long", 400), "length")

    options = ["--synthetic-step-ms", "2", "--drain-timeout", "600" if comes_back else "0.2"]
    with start_server("--model", "synthetic", *options) as server:
        asyncio.run(run(server))
        assert server.wait() == 0
        assert "Traceback" not in server.log.read_text()
