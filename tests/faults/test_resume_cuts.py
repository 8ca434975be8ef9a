"""Connections cut at every byte: with what comes after, a client has every token once, over real sockets."""

import asyncio
import json

import pytest

from tests.faults.faults_parts import held, until_held
from tests.faults.resume_parts import (
    CASES,
    RESUMABLE,
    Event,
    check_whole,
    decode_chunked,
    get,
    hang_up,
    last_id,
    parse_events,
    post,
    read_cut,
    read_rest,
)
from tests.raw_client import COMPLETIONS, STREAMS, Client
from tests.server.server_parts import expected

pytestmark = pytest.mark.anyio


WORKERS = 8


@pytest.fixture(scope="module")
def server(start_server):
    """A synthetic model at 0.2 ms steps."""
    return start_server("--model", "synthetic", "--served-model-name", "s", "--synthetic-step-ms", "0.2")


@CASES
async def test_cut_at_every_byte(server, path, body, prompt):
    """Wherever a connection breaks, however it breaks and however the client comes back, it gets exactly the rest."""

    async def attempt(client, cut):
        raw, writer, name = await read_cut(client, post(path, body), cut)
        hang_up(writer, reset=cut % 2)
        events = parse_events(decode_chunked(raw))
        if cut % 4 < 2 and events:
            chunk_id = events[0].data["id"]
            again = get(f"{STREAMS}/{chunk_id}", f"Last-Event-ID: {last_id(events)}")
        else:
            again = post(path, body, name, f"Last-Event-ID: {last_id(events)}")
        rest = await read_rest(client, again)
        writer.transport.abort()
        check_whole(events + rest, expected(prompt, 12), "length")
        return len(raw)

    async def worker(cuts):
        async with Client(server.address) as client:
            return [await attempt(client, cut) for cut in cuts]

    async with Client(server.address) as client:
        before = await held(server)
        whole = await read_rest(client, post(path, body))
    frames = [len(f"id: {event.id}\ndata: \n\n") + len(json.dumps(event.data)) for event in whole]
    longest = sum(frames) + 16 * len(frames)  # each in a chunk of its own
    cuts = iter(range(longest))
    lengths = await asyncio.gather(*(worker(cuts) for _ in range(WORKERS)))
    assert max(max(length) for length in lengths) < longest - 1, "the last cuts should have been behind the end"
    await until_held(server, before)


@CASES
async def test_cut_again_and_again_while_tokens_come(start_server, path, body, prompt):
    """A client whose connections break after some bytes each gets there too, each token once."""
    body = body | {"max_tokens": 60}

    async def attempt(client, size):
        events: list[Event] = []
        headers: list[str] = []
        while not events or events[-1].data != "[DONE]":
            raw, writer, name = await read_cut(client, post(path, body, *headers), size)
            hang_up(writer, reset=size % 2)
            events += parse_events(decode_chunked(raw))
            headers = [name, f"Last-Event-ID: {last_id(events)}"]
        check_whole(events, expected(prompt, 60), "length")

    with start_server("--model", "synthetic", "--synthetic-step-ms", "5") as server:
        async with Client(server.address) as client:
            await asyncio.gather(*(attempt(client, 300 + 97 * number) for number in range(16)))


async def test_text_that_is_not_ascii(default_server):
    """A character of several bytes and tokens, cut in the middle or between its tokens, comes whole and once."""
    body = {"prompt": "Bees:" + " 🐝" * 11, "max_tokens": 12, "temperature": 0, **RESUMABLE}

    async def attempt(client, cut):  # while the model runs
        raw, writer, name = await read_cut(client, post(COMPLETIONS, body), cut)
        hang_up(writer, reset=cut % 2)
        got = parse_events(decode_chunked(raw))
        rest = await read_rest(client, post(COMPLETIONS, body, name, f"Last-Event-ID: {last_id(got)}"))
        check_whole(got + rest, " 🐝" * 4, "length")

    async with Client(default_server.address) as client:
        raw, *_ = await read_cut(client, post(COMPLETIONS, body), 10**6)
        whole = decode_chunked(raw)
        events = parse_events(whole)
        check_whole(events, " 🐝" * 4, "length")
        path = f"{STREAMS}/{events[0].data['id']}"
        for cut in range(len(whole) + 1):  # after its end
            got = parse_events(whole[:cut])
            assert got + await read_rest(client, get(path, f"Last-Event-ID: {last_id(got)}")) == events
        bee = raw.index("🐝".encode())
        await asyncio.gather(*(attempt(client, cut) for cut in (bee, bee + 1, bee + 3, bee + 500)))
