"""Streams that the drain writes to the sockets itself, on a running server."""

import asyncio
import os
import signal

import psutil
import pytest

from rbee.transport.observer import Observer
from tests.raw_client import CHAT, COMPLETIONS, Client, text_of
from tests.server.server_parts import counters, expected, until_full

pytestmark = pytest.mark.anyio

NEVER = "\x00"  # a stop string that the model does not write: such a stream's tokens pass through Python


def without_names(events):
    """The events without what differs from request to request."""
    return [event if event == "[DONE]" else event | {"id": "", "created": 0} for event in events]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_both_ways_say_the_same(synthetic_server, path):
    """A stream that passes through Python and one that does not have the same events; each went its own way."""
    body = {"max_tokens": 20, "stream_options": {"include_usage": True}}
    body |= {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}

    async with Client(synthetic_server.address) as client:
        before = counters(synthetic_server)
        direct = await client.read(path, body | {"cache_salt": "one"})
        between = counters(synthetic_server)
        in_python = await client.read(path, body | {"stop": NEVER, "cache_salt": "other"})
        after = counters(synthetic_server)
        assert without_names(direct) == without_names(in_python)
        assert between["direct_tokens"] - before["direct_tokens"] == 20
        assert after["direct_tokens"] == between["direct_tokens"]
        assert after["tokens_drained"] - between["tokens_drained"] == 21  # the number of cached tokens is a record too


async def test_both_ways_time_their_tokens(start_server):
    """Each stream has one first token and a gap for each further one, whichever way it is written."""

    def counts(server):
        with Observer(server.pid) as observer:
            sample = observer.sample()
        return sample.histograms["first_token"].count, sample.histograms["token_gap"].count

    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        async with Client(server.address) as client:
            body = {"prompt": "hello", "max_tokens": 20}
            await client.read(COMPLETIONS, body)
            assert counts(server) == (1, 19)
            await client.read(COMPLETIONS, body | {"stop": NEVER})
            assert counts(server) == (2, 38)


async def test_no_stream_gets_the_tokens_of_a_dropped_one(synthetic_server):
    """A descriptor that is used again belongs to its new connection only, however the old one ended."""

    async def drop(client, number):
        stream = await client.open(COMPLETIONS, {"prompt": f"old {number}", "max_tokens": 4000, "stream": True})
        async for _ in stream.events():
            break
        if number % 2:
            stream.abort()
        else:
            stream.writer.close()

    async def read(client, number):
        events = await client.read(COMPLETIONS, {"prompt": f"new {number}", "max_tokens": 30})
        assert text_of(events) == expected(f"new {number}", 30)

    async with Client(synthetic_server.address) as client:
        for turn in range(10):
            numbers = range(turn * 20, turn * 20 + 20)
            await asyncio.gather(*(drop(client, number) for number in numbers))
            await asyncio.gather(*(read(client, number) for number in numbers))


async def test_engine_that_dies_beside_a_full_socket(start_server):
    """A client that was behind gets all that the engine committed, in order, and then the error."""
    body = {"prompt": "slow", "max_tokens": 8000, "stream": True}

    options = ["--model", "synthetic", "--synthetic-step-ms", "0", "--ring-capacity", "128"]
    with start_server(*options) as server:
        async with Client(server.address) as client:
            slow = await client.open(COMPLETIONS, body, receive_buffer=4096)
            await until_full(server)
            os.kill(server.engine.pid, signal.SIGKILL)
            events = [event async for event in slow.events()]
            assert events[-1] == "[DONE]"
            assert events[-2]["error"]["code"] == "engine_died"
            text = text_of(events[:-2])
            assert text == expected("slow", len(text))
            assert len(text) > 128


async def test_busy_poll(start_server):
    """Every token arrives although the server is never woken; and it sleeps when there is nothing to look for."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--busy-poll") as server:
        async with Client(server.address) as client:
            for turn in range(3):
                prompts = [f"{turn} {number}" for number in range(8)]
                before = counters(server)
                with server.stopped_engine():  # until all of them are there
                    bodies = [{"prompt": prompt, "max_tokens": 200, "stream": True} for prompt in prompts]
                    streams = [await client.open(COMPLETIONS, body) for body in bodies]
                for prompt, stream in zip(prompts, streams, strict=True):
                    assert text_of([event async for event in stream.events()]) == expected(prompt, 200)
                after = counters(server)
                assert after["wakes_written"] - before["wakes_written"] <= 2, "the first step of all, and none after it"
                assert after["wakes_elided"] - before["wakes_elided"] >= 198
        while psutil.Process(server.pid).status() != psutil.STATUS_SLEEPING:  # noqa: ASYNC110 - one that polls never does
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("stop", [[], [NEVER]])
async def test_busy_poll_beside_a_full_ring(start_server, stop):
    """A stream whose engine waits for its reader goes on when the reader does, although no step says so."""
    body = {"prompt": "slow", "max_tokens": 8000, "stream": True, "stop": stop}

    options = ["--model", "synthetic", "--synthetic-step-ms", "0", "--ring-capacity", "128", "--busy-poll"]
    with start_server(*options) as server:
        async with Client(server.address) as client:
            slow = await client.open(COMPLETIONS, body, receive_buffer=4096)
            await until_full(server)
            assert text_of([event async for event in slow.events()]) == expected("slow", 8000)
