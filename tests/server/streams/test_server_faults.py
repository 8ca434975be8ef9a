"""What is left, and what clients are told, when a process is stopped or killed."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from rbee.config import DEFAULT_MODEL
from tests.raw_client import COMPLETIONS, Client, text_of
from tests.server.server_parts import expected, until_full

pytestmark = pytest.mark.anyio

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "20"]
LONG = {"prompt": "long", "max_tokens": 8000, "stream": True}


def leftovers(pid, children):
    """What a server that had this pid and these children has left behind."""
    _, alive = psutil.wait_procs(children, timeout=60)
    return alive, list(Path("/dev/shm").glob(f"rbee-{pid}-*"))


async def open_streams(client, number, body=LONG):
    """Streams that have each shown a token: the rest of their events, and the first."""
    streams = [(await client.open(COMPLETIONS, body)).events() for _ in range(number)]
    return [(events, await anext(events)) for events in streams]


async def read_rest(first, events):
    """All events of a stream of which one has been read."""
    return [first] + [event async for event in events]


async def test_engine_killed(start_server):
    """Every open stream gets its tokens and one error event, and the next engine serves what comes then."""
    with start_server(*SYNTHETIC) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client, Client(server.address) as raw:
            collected = asyncio.ensure_future(client.post(COMPLETIONS, json=LONG | {"stream": False}))
            streams = await open_streams(raw, 20)
            while (await client.get("/ready")).json()["rings_in_use"] < 21:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            killed = server.engine
            killed.kill()
            for events, first in streams:
                *chunks, error, done = await read_rest(first, events)
                assert text_of(chunks) == expected("long", len(chunks))
                assert (error["error"]["code"], error["error"]["type"]) == ("engine_died", "server_error")
                assert done == "[DONE]"
            answer = await collected
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_died")
            assert answer.headers["retry-after"] == "1"
            while (ready := await client.get("/ready")).status_code != 200:
                assert not ready.json()["ready"]
                assert "started again" in ready.json()["reason"]
                assert (await client.get("/health")).status_code == 200
                await asyncio.sleep(0.001)
            assert ready.json()["rings_in_use"] == 0
            again = await client.post(COMPLETIONS, json=LONG | {"stream": False, "max_tokens": 5})
            assert again.json()["choices"][0]["text"] == expected("long", 5)
            assert server.engine != killed
        children = psutil.Process(server.pid).children()
        assert server.stop() == 0
        assert leftovers(server.pid, children) == ([], [])


async def test_engine_that_hangs_is_replaced(start_server):
    """A stopped engine cannot say so: its streams end with an error, and the next engine serves."""
    with start_server(*SYNTHETIC, "--hang-timeout", "3") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client, Client(server.address) as raw:
            [(events, first)] = await open_streams(raw, 1)
            server.engine.suspend()
            *_, error, done = await read_rest(first, events)
            assert (error["error"]["code"], done) == ("engine_died", "[DONE]")
            while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            again = await client.post(COMPLETIONS, json=LONG | {"stream": False, "max_tokens": 5})
            assert again.json()["choices"][0]["text"] == expected("long", 5)
        children = psutil.Process(server.pid).children()
        assert server.stop() == 0
        assert "the engine process died (it hung)" in server.log.read_text()
        assert leftovers(server.pid, children) == ([], [])


async def test_engine_that_dies_too_often_ends_the_server(start_server):
    """With exit code 1, the reason in its log, and nothing left behind."""
    with start_server(*SYNTHETIC, "--max-restarts", "0") as server:
        async with Client(server.address) as raw:
            [(events, first)] = await open_streams(raw, 1)
            children = psutil.Process(server.pid).children()
            server.engine.kill()
            *_, error, done = await read_rest(first, events)
            assert (error["error"]["code"], done) == ("engine_died", "[DONE]")
        assert server.wait() == 1
        assert "the engine process died (killed by SIGKILL" in server.log.read_text()
        assert leftovers(server.pid, children) == ([], [])


def test_process_group_killed_while_it_starts():
    """As systemd, containers and the kernel do it: no resource tracker is left to tidy up, and nothing is there to."""
    command = [sys.executable, "-m", "rbee.cli", "serve", "--port", "0", *SYNTHETIC]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as server:
        while not (children := psutil.Process(server.pid).children()):
            assert server.poll() is None
        os.killpg(server.pid, signal.SIGKILL)
    assert leftovers(server.pid, children) == ([], [])


async def test_server_killed(start_server):
    """Nothing of it is left: no engine, no shared memory."""
    with start_server(*SYNTHETIC) as server:
        children = psutil.Process(server.pid).children(recursive=True)
        assert server.engine in children
        assert leftovers(server.pid, []) == ([], []), "the arena should have no name any more"
        async with Client(server.address) as raw:
            await open_streams(raw, 3)
            assert await asyncio.to_thread(server.stop, signal.SIGKILL) == -signal.SIGKILL
        assert leftovers(server.pid, children) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_lets_streams_finish(start_server, number):
    """An open stream goes on to its end while new requests are refused; then the server is gone, with exit code 0."""
    body = {"prompt": "last words", "max_tokens": 400, "stream": True}

    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        children = psutil.Process(server.pid).children()
        async with Client(server.address) as raw, httpx.AsyncClient(base_url=server.url) as client:
            with server.stopped_engine():  # the stream is open while it is stopped
                stream = await raw.open(COMPLETIONS, body)
                server.process.send_signal(number)
                while (ready := await client.get("/ready")).status_code == 200:
                    pass
                assert (ready.status_code, ready.json()["state"]) == (503, "draining")
                refused = await client.post(COMPLETIONS, json=body)
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_draining")
                assert refused.headers["retry-after"]
                assert (await client.get("/health")).status_code == 200
            events = [event async for event in stream.events()]
            assert text_of(events) == expected("last words", 400)
            assert events[-1] == "[DONE]"
        assert server.wait() == 0
        assert leftovers(server.pid, children) == ([], [])
        assert "Traceback" not in server.log.read_text()
        assert "leaked" not in server.log.read_text(), "the native objects should be freed at the end"
        assert "killed" not in server.log.read_text(), "the engine should have stopped when it was asked to"


@pytest.mark.parametrize("signals", [1, 2])
def test_engine_that_hangs_cannot_keep_a_stopping_server(start_server, signals):
    """It is killed after a while, or at the second signal."""
    with start_server(*SYNTHETIC) as server:
        children = psutil.Process(server.pid).children()
        server.engine.suspend()
        server.process.send_signal(signal.SIGTERM)
        if signals == 2:
            server.wait_for_log("stopping")
            server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert leftovers(server.pid, children) == ([], [])
        assert ("it is killed" in server.log.read_text()) is (signals == 1)


@pytest.mark.parametrize(("drain_timeout", "signals"), [("0.2", 1), ("600", 2)])
async def test_streams_that_do_not_finish_are_ended(start_server, drain_timeout, signals):
    """After the drain timeout, or at the second signal, each open stream gets an error event, and the server goes."""
    with start_server(*SYNTHETIC, "--drain-timeout", drain_timeout) as server:
        children = psutil.Process(server.pid).children()
        async with Client(server.address) as raw:
            streams = await open_streams(raw, 3)
            server.process.send_signal(signal.SIGTERM)
            if signals == 2:
                while (await asyncio.to_thread(httpx.get, server.url + "/ready")).status_code == 200:
                    pass
                server.process.send_signal(signal.SIGTERM)
            for events, first in streams:
                *chunks, error, done = await read_rest(first, events)
                assert text_of(chunks) == expected("long", len(chunks))
                assert error["error"]["code"] == "server_shutdown"
                assert done == "[DONE]"
        assert server.wait() == 0
        assert leftovers(server.pid, children) == ([], [])


async def test_slow_reader_does_not_keep_a_stopping_server(start_server):
    """A client that does not read its last event is left behind."""
    options = ["--model", "synthetic", "--synthetic-step-ms", "0", "--ring-capacity", "128", "--drain-timeout", "0.1"]
    with start_server(*options) as server:
        async with Client(server.address) as raw:
            await raw.open(COMPLETIONS, LONG, receive_buffer=4096)
            await until_full(server)
            assert await asyncio.to_thread(server.stop) == 0


# Stops the engine process before it does anything: a model that is not loaded yet for as long as a test needs.
STOP_ENGINE = """
import os, signal, sys
if "rbee.engine" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def starting_server(launch, tmp_path):
    """A server whose engine has been started, is stopped, and has not said anything."""
    (tmp_path / "sitecustomize.py").write_text(STOP_ENGINE)
    command = ["env", f"PYTHONPATH={tmp_path}", sys.executable, "-m", "rbee.cli", "serve", "--port", "0"]
    with launch([*command, "--model", "synthetic"], until="listening") as server:
        while not any(child.status() == psutil.STATUS_STOPPED for child in psutil.Process(server.pid).children()):
            time.sleep(0.01)
        yield server


def test_while_starting(starting_server):
    """The port is open at once: /health answers, /ready tells the state, requests are told when to come back."""
    server = starting_server
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert client.get("/health").status_code == 200
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["ready"], ready.json()["state"]) == (503, False, "starting")
        refused = client.post(COMPLETIONS, json={"prompt": "hi"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_starting")
        assert refused.headers["retry-after"]
        children = psutil.Process(server.pid).children()
    assert server.stop() == 0
    assert leftovers(server.pid, children) == ([], [])
    assert "it is killed" not in server.log.read_text(), "there was nothing to wait for"


def test_stopped_while_loading(start_server):
    """A model that is being loaded tells how far it is; a server that is stopped then waits for nothing."""
    with start_server("--model", DEFAULT_MODEL, until="listening") as server:
        server.wait_for_log("engine: ")
        children = psutil.Process(server.pid).children()
        assert server.stop() == 0
        assert leftovers(server.pid, children) == ([], [])
        assert "it is killed" not in server.log.read_text(), "there was nothing to wait for"


def test_engine_killed_before_it_was_ready(starting_server):
    """A server that never was ready ends with exit code 2 and a sentence."""
    starting_server.engine.kill()
    assert starting_server.wait() == 2
    log = starting_server.log.read_text()
    assert "before it was ready (killed by SIGKILL" in log
    assert "Traceback" not in log


def test_engine_that_cannot_start(start_server):
    """Its own sentence is in the log, and the exit code is 2."""
    with start_server("--model", "synthetic", "--max-model-len", "100000000", until=None) as server:
        assert server.wait() == 2
        log = server.log.read_text()
        assert "100000000" in log
        assert "Traceback" not in log
