"""Clients that read too slowly, beside others that do not: real server, real sockets."""

import asyncio
import socket

from tests.faults.faults_parts import expected, held, resident_bytes, until_held, until_rings
from tests.raw_client import CHAT, COMPLETIONS, Client, text_of

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1", "--ring-capacity", "128"]
# More frames than sockets, buffers and ring take together: they hold some 300 kB, a frame has 180 bytes.
MANY = 3000
LONG = {"max_tokens": 5000, "stream": True}
MIB = 2**20


async def check_tokens(stream, prompt, number):
    """A whole stream, with every token of it."""
    events = [event async for event in stream.events()]
    assert text_of(events) == expected(prompt, number)
    assert events[-1] == "[DONE]"


def read_faster(stream):
    """Give the stream's socket a large buffer: with a tiny one, each few kB wait for a timer of TCP."""
    stream.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)


async def test_slow_reader_that_reads_on_in_time_gets_every_token(start_server):
    """Its tokens wait in its ring, its sequence pauses, its neighbours go on; what waited comes in one write."""
    with start_server(*SYNTHETIC) as server:
        async with Client(server.address) as client:
            before = await held(server)
            slow = await client.open(COMPLETIONS, LONG | {"prompt": "slow"}, receive_buffer=4096)
            # Its neighbours take as many steps as fill its ring for certain.
            bodies = {prompt: LONG | {"prompt": prompt, "max_tokens": MANY} for prompt in ("left", "right")}
            neighbours = [(prompt, await client.open(COMPLETIONS, body)) for prompt, body in bodies.items()]
            await asyncio.gather(*(check_tokens(stream, prompt, MANY) for prompt, stream in neighbours))
            assert (await held(server)).rings == 1, "the slow stream should not have ended"
            read_faster(slow)
            chunks = [chunk async for chunk in slow.chunks()]
            frames = b"".join(chunks).split(b"\n\n")[:-1]
            assert len(frames) == 5001, "each token has its frame, and then comes [DONE]"
            assert max(chunk.count(b"\n\n") for chunk in chunks) >= 128, "a full ring is one write"
            text = "".join(frame.partition(b'"text":"')[2][:1].decode() for frame in frames)
            assert text == expected("slow", 5000)
            slow.abort()
            await until_rings(server, before.rings)


async def test_slow_reader_is_given_up_alone(start_server):
    """It ends with its reason behind the tokens that were on their way; nothing of it is left, its neighbours go on."""
    with start_server(*SYNTHETIC, "--slow-reader-timeout", "3") as server:
        before = await held(server)
        async with Client(server.address) as client:
            await client.read(COMPLETIONS, {"prompt": "what is allocated once is there after this", "max_tokens": 500})
        await until_held(server, before)
        memory = resident_bytes(server)
        async with Client(server.address) as client:
            slow = await client.open(COMPLETIONS, LONG | {"prompt": "slow"}, receive_buffer=4096)
            chat = LONG | {"messages": [{"role": "user", "content": "slow too"}], "stop": ["~"]}
            other = await client.open(CHAT, chat, receive_buffer=4096)
            bodies = {prompt: LONG | {"prompt": prompt, "max_tokens": 8000} for prompt in ("left", "right")}
            neighbours = [(prompt, await client.open(COMPLETIONS, body)) for prompt, body in bodies.items()]
            reading = [asyncio.ensure_future(check_tokens(stream, prompt, 8000)) for prompt, stream in neighbours]
            await until_rings(server, 2)
            assert not any(task.done() for task in reading), "it is the slow ones that should have ended"
            for stream, prompt in ((slow, "slow"), (other, "user: slow too\nassistant: ")):
                read_faster(stream)
                *chunks, error, done = [event async for event in stream.events()]
                assert 128 < len(chunks) < MANY
                assert text_of(chunks) == expected(prompt, len(chunks))
                assert error["error"]["code"] == "slow_reader"
                assert error["error"]["type"] == "invalid_request_error"
                assert "--slow-reader-timeout" in error["error"]["message"]
                assert done == "[DONE]"
            await asyncio.gather(*reading)
            for stream in (slow, other, *(stream for _, stream in neighbours)):
                stream.abort()
            await until_held(server, before)
            assert resident_bytes(server) < memory + 8 * MIB


async def test_client_that_never_reads_again_is_dropped(start_server):
    """Its ring is free after the timeout, its connection is gone after twice the timeout, while it still holds on."""
    with start_server(*SYNTHETIC, "--slow-reader-timeout", "0.3") as server:
        async with Client(server.address) as client:
            before = await held(server)
            streams = [
                await client.open(COMPLETIONS, LONG | {"prompt": f"{number}"}, receive_buffer=4096)
                for number in range(8)
            ]
            await until_held(server, before)
            assert not any(stream.writer.is_closing() for stream in streams)
            await client.read(COMPLETIONS, {"prompt": "next", "max_tokens": 5})
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
