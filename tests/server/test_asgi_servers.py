"""The application under other ASGI servers than ours: the same bytes, the same care for clients that leave or stall."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import httpx
import pytest
from starlette.testclient import TestClient

from rbee.server.assembly import build
from tests.raw_client import limit_receive_buffer
from tests.server.asgi_parts import synthetic_config, synthetic_model, under_hypercorn, under_our_server

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from rbee.server.assembly import Assembly
    from tests.server.asgi_parts import Address

pytestmark = pytest.mark.anyio

CHAT = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 24}
BODIES: dict[str, dict[str, Any]] = {
    "streamed": CHAT | {"stream": True, "stream_options": {"include_usage": True}},
    "streamed through Python": CHAT | {"stream": True, "stop": ["never"]},
    "two choices": CHAT | {"n": 2},
    "whole": CHAT,
    "refused": CHAT | {"max_tokens": -2},
}
ENDLESS = CHAT | {"max_tokens": 8000, "stream": True}


@pytest.fixture
async def assembly() -> Assembly:
    """The application and its supervisor, not started."""
    return build(synthetic_config(), synthetic_model())


def comparable(response: Any) -> tuple[int, str, bytes]:
    """What does not differ from one request to the next; two random ids and a time are made equal."""
    body = re.sub(rb"chatcmpl-[0-9a-f]{32}", b"chatcmpl-ID", response.content)
    body = re.sub(rb'"created":[0-9]+', b'"created":0', body)
    return response.status_code, response.headers["content-type"], body


async def answers_over(address: Address) -> dict[str, tuple[int, str, bytes]]:
    """The answer to each of the bodies."""
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        return {name: comparable(await client.post("/v1/chat/completions", json=body)) for name, body in BODIES.items()}


async def test_the_same_application_under_three_servers(assembly):
    """Streamed, collected and refused requests: byte for byte the same, chunk framing aside."""
    app, supervisor = assembly

    def answers_of_the_test_client() -> dict[str, tuple[int, str, bytes]]:
        with TestClient(app, base_url="http://localhost") as client:
            client.portal.call(supervisor.wait_ready)
            return {name: comparable(client.post("/v1/chat/completions", json=body)) for name, body in BODIES.items()}

    await supervisor.start()
    await supervisor.wait_ready()
    async with under_our_server(app) as address:
        ours = await answers_over(address)
        sent_natively = supervisor.client.counters()["direct_tokens"]
    await supervisor.stop(5)
    async with under_hypercorn(app) as address:
        await until_ready(address)
        assert await answers_over(address) == ours
        assert supervisor.client.counters()["direct_tokens"] == 0
    assert await anyio.to_thread.run_sync(answers_of_the_test_client) == ours
    assert sent_natively > 0
    assert ours["streamed"][2].endswith(b"data: [DONE]\n\n")
    assert [answer[0] for answer in ours.values()] == [200, 200, 200, 200, 400]


async def until_ready(address: Address) -> None:
    """Return when the server takes requests."""
    async with httpx.AsyncClient(base_url="http://{}:{}".format(*address)) as client:
        while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110 - the engine is another process
            await asyncio.sleep(0.01)


async def open_stream(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has asked for an endless stream and read the first bytes of it."""
    body = httpx.Request("POST", "http://localhost/v1/chat/completions", json=ENDLESS)
    sock = socket.socket()
    limit_receive_buffer(sock, 16 * 1024)
    sock.connect(address)
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**12)
    head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
    writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body.content)
    await reader.readuntil(b"data: ")
    return reader, writer


async def test_a_client_that_goes_under_hypercorn(assembly):
    """Its sequence is cancelled and its ring is free again."""
    app, supervisor = assembly
    async with under_hypercorn(app) as address:
        await until_ready(address)
        _, writer = await open_stream(address)
        assert supervisor.client.rings_in_use == 1
        writer.transport.abort()
        await supervisor.client.wait_idle()


async def test_a_client_that_does_not_read_under_hypercorn():
    """Its stream ends after the time for slow readers, and its connection is closed before the answer is complete."""
    config = synthetic_config(step_ms=0.0, slow_reader_timeout=0.2, ring_capacity=64)
    app, supervisor = build(config, synthetic_model())
    dropped = asyncio.Event()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except ConnectionAbortedError:
            dropped.set()
            raise

    async with under_hypercorn(watched) as address:
        await until_ready(address)
        reader, writer = await open_stream(address)
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        await supervisor.client.wait_idle()
        await dropped.wait()
        transport.resume_reading()
        rest = await reader.read()
        assert b"[DONE]" not in rest
        writer.close()
