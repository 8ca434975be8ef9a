"""Clients that leave while their connection is not read: they are noticed as any others."""

import signal
import socket
from typing import Any

import psutil
import pytest

from tests.faults.faults_parts import held, until_held
from tests.faults.resume_parts import RESET, hang_up
from tests.raw_client import COMPLETIONS, Client, request_bytes
from tests.server.server_parts import counters, until_rings

pytestmark = pytest.mark.anyio

BEHIND = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def narrow_server(start_server):
    """A server that runs one sequence at a time, in steps of 100 ms, 8 tokens of a prompt in each."""
    options = ["--max-num-seqs", "1", "--synthetic-step-ms", "100", "--max-num-batched-tokens", "8"]
    return start_server("--model", "synthetic", *options, "--resume-timeout", "0.1")


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("how", ["whole", "streamed", "resumable"])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
async def test_disconnect_behind_a_pipelined_request_cancels(narrow_server, stage, how, reset):
    """The server does not read while a request waits behind another one, and still notices that the client has left.

    None of these requests could end by itself in the time the test waits.
    """
    long: dict[str, Any] = {
        "prompt": "x" * (8000 if stage == "prefill" else 1),
        "max_tokens": 190 if stage == "prefill" else 8000,
        "stream": how != "whole",
        "stream_options": {"resumable": True} if how == "resumable" else None,
    }
    async with Client(narrow_server.address) as client:
        before = await held(narrow_server)
        if stage == "queue":
            occupant = await client.open(COMPLETIONS, long | {"stream": True, "stream_options": None})
            await anext(aiter(occupant.events()))
        reader, writer = await client.send_raw(request_bytes(COMPLETIONS, long))
        await until_rings(narrow_server, 2 if stage == "queue" else 1)
        if stage == "decode" and how != "whole":
            await reader.readuntil(b'"text"')
        writer.write(BEHIND)
        await writer.drain()
        hang_up(writer, reset=reset)
        await until_rings(narrow_server, 1 if stage == "queue" else 0)
        if stage == "queue":
            occupant.abort()
        await until_held(narrow_server, before)
    assert "Traceback" not in narrow_server.log.read_text()


@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
@pytest.mark.parametrize("size", [10, 5000], ids=["small", "read in a thread"])
async def test_nothing_is_done_for_clients_that_left_while_they_waited(start_server, size, reset):
    """A server that comes to its backlog late begins no work for those who have given up, however whole the request."""
    request = request_bytes(COMPLETIONS, {"prompt": "x" * size, "max_tokens": 3, "stream": True})
    with start_server("--model", "synthetic", "--synthetic-step-ms", "0") as server:
        before, computed = await held(server), counters(server)["prompt_tokens"]
        server.process.send_signal(signal.SIGSTOP)
        while psutil.Process(server.pid).status() != psutil.STATUS_STOPPED:
            pass
        for _ in range(50):
            with socket.create_connection(server.address) as client:
                client.sendall(request)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        server.process.send_signal(signal.SIGCONT)
        await until_held(server, before)
        assert counters(server)["prompt_tokens"] == computed
        async with Client(server.address) as raw:
            assert len(await raw.read(COMPLETIONS, {"prompt": "x" * size, "max_tokens": 3})) == 4
        assert "Traceback" not in server.log.read_text()
