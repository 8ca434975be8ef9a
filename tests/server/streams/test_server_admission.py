"""Limits and deaths as clients of a running server see them: 429 per key, and answers from the next engine."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.raw_client import COMPLETIONS, Client, text_of
from tests.server.server_parts import expected, rings_in_use, until_rings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

pytestmark = pytest.mark.anyio

LONG = {"prompt": "long", "max_tokens": 8000, "stream": True}
SHORT = {"prompt": "short", "max_tokens": 5}
ALICE, BOB = "Authorization: Bearer alice", "Authorization: Bearer bob"


async def test_key_at_its_limit(start_server: Callable[..., Server]) -> None:
    """It gets 429 with a code of its own, streamed or not; the other key's requests are answered all the time.

    The place is free when the client has gone, also that of an answer that is not streamed.
    """
    keys = ["--api-key", "alice", "--api-key", "bob", "--max-requests-per-key", "1"]
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", *keys) as server:
        async with Client(server.address) as client:
            for body in (LONG, LONG | {"stream": False}):
                _, held = await client.send(COMPLETIONS, body, ALICE)
                while await rings_in_use(server) != 1:
                    pass
                for stream in (True, False):
                    refused = await client.open(COMPLETIONS, LONG | {"stream": stream}, ALICE)
                    assert refused.status == 429
                    assert 1 <= int(refused.headers["retry-after"]) <= 60
                    answer = await refused.reader.readexactly(int(refused.headers["content-length"]))
                    assert b"key_limit" in answer
                    assert (await client.open(COMPLETIONS, SHORT, BOB)).status == 200
                held.transport.abort()
                await until_rings(server, 0)
                assert (await client.open(COMPLETIONS, SHORT, ALICE)).status == 200
                await until_rings(server, 0)


async def test_queue_of_tokens_is_429(start_server: Callable[..., Server]) -> None:
    """What waits for its first token counts until its client leaves."""
    body = {"prompt": "x" * 60, "max_tokens": 5, "stream": True}
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--max-queued-tokens", "100") as server:
        async with Client(server.address) as client:
            with server.stopped_engine():
                waiting = await client.open(COMPLETIONS, body)
                refused = await client.open(COMPLETIONS, body)
                assert (waiting.status, refused.status) == (200, 429)
                answer = await refused.reader.readexactly(int(refused.headers["content-length"]))
                assert b"60 tokens already" in answer
                waiting.abort()
                while (again := await client.open(COMPLETIONS, body)).status == 429:
                    pass
            assert [event async for event in again.events()][-1] == "[DONE]"


async def test_deadline_that_has_passed_is_told_before_a_full_house(start_server: Callable[..., Server]) -> None:
    """There is no time to come back in."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    with start_server("--model", "synthetic", "--max-requests", "64") as server, server.stopped_engine():
        async with Client(server.address) as client:
            for _ in range(64):
                await client.open(COMPLETIONS, LONG)
            refused = await client.open(COMPLETIONS, LONG, f"X-Request-Deadline: {past}")
            assert refused.status == 408
            assert (await client.open(COMPLETIONS, LONG)).status == 429


async def test_requests_without_a_token_are_answered_by_the_next_engine(start_server: Callable[..., Server]) -> None:
    """Streamed, by the native drain or not, and unstreamed; a stream with tokens ends with its error."""
    bodies = [SHORT | {"stream": True}, SHORT | {"stream": True, "stop": "never"}, SHORT | {"stream": True, "n": 2}]
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--retry-unstarted") as server:
        async with Client(server.address) as client, httpx.AsyncClient(base_url=server.url, timeout=60) as plain:
            begun = (await client.open(COMPLETIONS, LONG)).events()
            first = await anext(begun)
            engine = server.engine
            with server.stopped_engine():
                streams = [await client.open(COMPLETIONS, body) for body in bodies]
                gone = await client.open(COMPLETIONS, SHORT | {"stream": True})
                collected = asyncio.ensure_future(plain.post(COMPLETIONS, json=SHORT))
                while await rings_in_use(server) < 7:
                    pass
                engine.kill()
            *chunks, error, done = [first] + [event async for event in begun]
            assert text_of(chunks) == expected("long", len(chunks))
            assert (error["error"]["code"], done) == ("engine_died", "[DONE]")
            gone.abort()
            for stream in streams[:2]:
                assert text_of([event async for event in stream.events()]) == expected("short", 5)
            both = [event async for event in streams[2].events()]
            for choice in (0, 1):
                texts = [event["choices"][0]["text"] for event in both[:-1] if event["choices"][0]["index"] == choice]
                assert "".join(texts) == expected("short", 5)
            answer = await collected
            assert answer.json()["choices"][0]["text"] == expected("short", 5)
            await until_rings(server, 0)
        assert server.stop() == 0


async def test_server_that_stops_ends_requests_without_an_engine(start_server: Callable[..., Server]) -> None:
    """They wait for a restart that does not come: each gets one error."""
    with start_server("--model", "synthetic", "--retry-unstarted") as server:
        async with Client(server.address) as client:
            engine = server.engine
            with server.stopped_engine():
                stream = await client.open(COMPLETIONS, LONG)
                os.kill(server.pid, signal.SIGTERM)
                server.wait_for_log("stopping")
                engine.kill()
            [error, done] = [event async for event in stream.events()]
            assert (error["error"]["code"], done) == ("engine_died", "[DONE]")
        assert server.wait() == 0
