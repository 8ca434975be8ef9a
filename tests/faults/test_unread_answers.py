"""Answers that are not streamed and that nobody reads: real server, real sockets that take a few kilobytes."""

import asyncio

import pytest

from tests.faults.faults_parts import held, until_held
from tests.raw_client import CHAT, Client, request_bytes

pytestmark = pytest.mark.anyio

LARGE = {"tokens": [1] * 131_000}  # its answer has more bytes than all buffers between the server and a client
LOGPROBS = {
    "messages": [{"role": "user", "content": "hi"}],
    "n": 32,
    "max_tokens": 30,
    "logprobs": True,
    "top_logprobs": 20,
}
CLOSE = "Connection: close"
REQUESTS = {
    "detokenize": request_bytes("/detokenize", LARGE),
    "detokenize, then close": request_bytes("/detokenize", LARGE, CLOSE),
    "logprobs": request_bytes(CHAT, LOGPROBS),
    "pipelined": request_bytes("/detokenize", LARGE) + request_bytes("/detokenize", LARGE),
    "before a generation": request_bytes("/detokenize", LARGE) + request_bytes(CHAT, LOGPROBS),
}


@pytest.fixture(scope="module")
def server(start_server):
    """A server that waits 0.3 s for readers."""
    return start_server("--model", "synthetic", "--synthetic-step-ms", "0", "--slow-reader-timeout", "0.3")


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_answer_that_nobody_reads_is_dropped(server, request_):
    """Its client is still there, and the server has neither its descriptor nor a ring any more."""
    async with Client(server.address) as client:
        before = await held(server)
        connections = [await client.send_raw(request_, receive_buffer=4096) for _ in range(2)]
        await until_held(server, before)
        for reader, _ in connections:
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(2**30)
    assert "Traceback" not in server.log.read_text()
