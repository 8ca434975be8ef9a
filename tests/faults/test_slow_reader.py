"""Clients that read too slowly, beside others that do not: real server, real sockets."""

import asyncio
from typing import Any

import pytest

from tests.faults.faults_parts import held, until_held
from tests.raw_client import CHAT, COMPLETIONS, Client, text_of
from tests.server.server_parts import counters, expected, until_rings

pytestmark = pytest.mark.anyio

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "0.2", "--ring-capacity", "128"]
# More frames than sockets, buffers and ring take together: they hold some 300 kB, a frame has 180 bytes.
MANY = 3000
LONG: dict[str, Any] = {"max_tokens": 5000, "stream": True}
SMALL = 16384  # bytes of a socket's buffer that is full soon


async def check_tokens(stream, prompt, number):
    """A whole stream, with every token of it."""
    events = [event async for event in stream.events()]
    assert text_of(events) == expected(prompt, number)
    assert events[-1] == "[DONE]"


async def test_slow_reader_that_reads_on_in_time_gets_every_token(start_server):
    """Its tokens wait in its ring, its sequence pauses, its neighbours go on; what waited comes in one write."""
    with start_server(*SYNTHETIC) as server:
        async with Client(server.address) as client:
            before = await held(server)
            slow = await client.open(COMPLETIONS, LONG | {"prompt": "slow"}, receive_buffer=SMALL)
            # Its neighbours take as many steps as fill its ring for certain.
            bodies = {prompt: LONG | {"prompt": prompt, "max_tokens": MANY} for prompt in ("left", "right")}
            neighbours = [(prompt, await client.open(COMPLETIONS, body)) for prompt, body in bodies.items()]
            await asyncio.gather(*(check_tokens(stream, prompt, MANY) for prompt, stream in neighbours))
            assert (await held(server)).rings == 1, "the slow stream should not have ended"
            chunks = [chunk async for chunk in slow.chunks()]
            frames = b"".join(chunks).split(b"\n\n")[:-1]
            assert len(frames) == 5001, "each token has its frame, and then comes [DONE]"
            assert max(chunk.count(b"\n\n") for chunk in chunks) >= 128, "a full ring is one write"
            text = "".join(frame.partition(b'"text":"')[2][:1].decode() for frame in frames)
            assert text == expected("slow", 5000)
            slow.abort()
            await until_rings(server, before.rings)


async def keep_reading(client, prompt, over):
    """Read one stream after the other, each with every token of it, until another has been read after `over`."""
    last = False
    while not last:
        last = over.is_set()
        stream = await client.open(COMPLETIONS, {"prompt": prompt, "max_tokens": 300, "stream": True})
        await check_tokens(stream, prompt, 300)
        stream.abort()


async def check_given_up(stream, prompt):
    """The rest of a stream: the tokens that were on their way, then the reason."""
    *chunks, error, done = [event async for event in stream.events()]
    assert 128 < len(chunks) < MANY
    assert text_of(chunks) == expected(prompt, len(chunks))
    assert error["error"]["code"] == "slow_reader"
    assert error["error"]["type"] == "invalid_request_error"
    assert "--slow-reader-timeout" in error["error"]["message"]
    assert done == "[DONE]"


async def test_slow_reader_is_given_up_alone(start_server):
    """It ends with its reason behind the tokens that were on their way; nothing of it is left, its neighbours go on."""
    with start_server(*SYNTHETIC, "--slow-reader-timeout", "3") as server:
        before = await held(server)
        async with Client(server.address) as client:
            slow = await client.open(COMPLETIONS, LONG | {"prompt": "slow"}, receive_buffer=SMALL)
            chat = LONG | {"messages": [{"role": "user", "content": "slow too"}], "stop": ["~"]}
            other = await client.open(CHAT, chat, receive_buffer=SMALL)
            over = asyncio.Event()
            neighbours = [asyncio.ensure_future(keep_reading(client, prompt, over)) for prompt in ("left", "right")]
            while counters(server)["cancels"] < 2:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            await asyncio.gather(check_given_up(slow, "slow"), check_given_up(other, "user: slow too\nassistant: "))
            over.set()
            await asyncio.gather(*neighbours)
            assert counters(server)["cancels"] == 2, "it is the slow ones that should have ended early"
        await until_held(server, before)


async def test_client_that_never_reads_again_is_dropped(start_server):
    """Its ring is free after the timeout, its connection is gone after twice the timeout, while it still holds on."""
    with start_server(*SYNTHETIC, "--slow-reader-timeout", "0.3") as server:
        async with Client(server.address) as client:
            before = await held(server)
            streams = [
                await client.open(COMPLETIONS, LONG | {"prompt": f"{number}"}, receive_buffer=SMALL)
                for number in range(8)
            ]
            await until_held(server, before)
            assert not any(stream.writer.is_closing() for stream in streams)
            await client.read(COMPLETIONS, {"prompt": "next", "max_tokens": 5})
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
