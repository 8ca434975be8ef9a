"""Faults at random moments under load, from seeds that a failing test shows: every stream is accounted for."""

import asyncio
import random

import httpx
import psutil
import pytest

from tests.faults.crash_parts import load
from tests.faults.faults_parts import held, until_held
from tests.faults.resume_parts import hang_up
from tests.raw_client import COMPLETIONS, Client, request_bytes, text_of
from tests.server.server_parts import counters, expected

pytestmark = pytest.mark.anyio

RESTARTS = ["--max-restarts", "1000", "--restart-window", "1", "--hang-timeout", "0"]
SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1", "--ring-capacity", "128", *RESTARTS]
TOLD = {"engine_died", "engine_dead", "engine_starting", "engine_loading"}
TOKENS = 100


async def until_replaced(server, dead):
    """Wait until an engine serves that is not this one."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        while (await client.get("/ready")).status_code != 200 or server.engine == dead:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.005)


async def until_tokens(server, number):
    """Wait until the engine has committed so many tokens since it started."""
    while counters(server)["tokens"] < number:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", [11, 12, 13, 14])
async def test_engine_killed_or_stopped_at_a_random_moment(start_server, seed):
    """Killed, stopped for a while, or stopped and killed: one end per stream, its tokens in order, and nothing left."""
    chance = random.Random(seed)
    with start_server(*SYNTHETIC) as server:
        before = await held(server)
        for _ in range(5):
            fault = chance.choice(["kill", "stop", "stop and kill"])
            moment = counters(server)["tokens"] + chance.randrange(1, 12 * TOKENS)
            answers = asyncio.ensure_future(load(server, tokens=TOKENS))
            await until_tokens(server, moment)
            engine = server.engine
            if fault != "kill":
                engine.suspend()
                while engine.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.001)
                assert await held(server)  # it answers
            if fault == "stop":
                engine.resume()
                assert sorted(answer.end() for answer in await answers) == ["left"] + ["whole"] * 15, (fault, moment)
            else:
                engine.kill()
                ends = [answer.end() for answer in await answers]
                assert len(ends) == 16, (fault, moment)
                assert set(ends) <= TOLD | {"whole", "left"}, (fault, moment)
                await until_replaced(server, engine)
            await until_held(server, before)


async def test_engine_of_a_real_model_killed_under_load(start_server):
    """What clients have of an answer is how it begins without a fault, and the next engine gives it all."""
    chance = random.Random(21)
    bodies = [
        {"prompt": f"The city of {name} is", "max_tokens": 40, "temperature": 0, "stream": True, "ignore_eos": True}
        for name in ("Paris", "Rome", "Oslo", "Lima")
    ]

    async def events_of(client, body):
        stream = await client.open(COMPLETIONS, body)
        return [event async for event in stream.events()] if stream.status == 200 else None

    with start_server(*RESTARTS) as server:
        async with Client(server.address) as client:
            whole = [text_of(await events_of(client, body)) for body in bodies]
        before = await held(server)
        for _ in range(2):
            async with Client(server.address) as client:
                moment = counters(server)["tokens"] + chance.randrange(4, 4 * 30)
                reads = asyncio.gather(*(events_of(client, body) for body in bodies))
                await until_tokens(server, moment)
                engine = server.engine
                engine.kill()
                for text, events in zip(whole, await reads, strict=True):
                    assert events is not None
                    *chunks, error, done = events
                    assert done == "[DONE]"
                    if "error" in error:
                        assert error["error"]["code"] == "engine_died"
                        assert text.startswith(text_of(chunks))
                    else:
                        assert text_of(events) == text
            await until_replaced(server, engine)
            await until_held(server, before)
            async with Client(server.address) as client:
                assert [text_of(await events_of(client, body)) for body in bodies] == whole


@pytest.mark.parametrize("options", [SYNTHETIC, []], ids=["synthetic", "default model"])
async def test_two_hundred_clients_that_drop_and_one_that_is_answered(start_server, options):
    """They go at any byte of their request, or of their answer; the last one is answered as if it were alone."""
    chance = random.Random(31)
    request = request_bytes(COMPLETIONS, {"prompt": "drop", "max_tokens": 2000, "stream": True, "ignore_eos": True})

    async def drop(client):
        sent = min(chance.randrange(len(request) * 2), len(request))
        reader, writer = await client.send_raw(request[:sent])
        if sent == len(request):
            await reader.read(chance.randrange(1, 2000))
        hang_up(writer, reset=chance.randrange(2))

    with start_server(*options) as server:
        async with Client(server.address) as client:
            first = await client.read(COMPLETIONS, {"prompt": "last", "max_tokens": 20, "temperature": 0})
        before = await held(server)
        async with Client(server.address) as client:
            await asyncio.gather(*(drop(client) for _ in range(200)))
            last = await client.read(COMPLETIONS, {"prompt": "last", "max_tokens": 20, "temperature": 0})
        assert text_of(last) == text_of(first)
        if options:
            assert text_of(last) == expected("last", 20)
        await until_held(server, before)
