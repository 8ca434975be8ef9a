"""The real engine process, spoken to over the control channel and the rings as the server does."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rbee import messages
from rbee.config import EngineConfig
from rbee.messages import FinishReason
from rbee.models.synthetic import expected_tokens
from rbee.transport import Arena, LifeLine, create_doorbell
from rbee.transport.control import FrameDecoder, frame
from tests.engine.engine_parts import PATIENCE, engine_command, engine_process

SYNTHETIC = EngineConfig(model="synthetic", synthetic_step_ms=1.0, kv_cache_mib=1)


@pytest.fixture
def engine(tmp_path):
    """An engine process that is ready, with the synthetic model at 1 ms steps."""
    with engine_process(tmp_path, SYNTHETIC) as engine:
        engine.wait_for(messages.Ready)
        yield engine


def ended(pidfd: int) -> bool:
    """Wait for a process to end."""
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


def test_start_says_attached_then_ready(tmp_path):
    """The start protocol: Attached with the pid, then Ready with what was loaded."""
    with engine_process(tmp_path, SYNTHETIC) as engine:
        assert engine.receive() == messages.Attached(pid=engine.process.pid)
        engine.rings.arena.unlink()
        ready = engine.wait_for(messages.Ready)
        assert (ready.runner, ready.vocab_size, ready.num_blocks, ready.block_size) == ("synthetic", 256, 64, 16)
        assert ready.max_model_len == 1024
        request = engine.submit([1, 2, 3])
        engine.drain_until(lambda: request.finish)
        assert request.tokens == expected_tokens([1, 2, 3], 8)


def test_many_requests_get_exactly_their_tokens(engine):
    """64 requests at once, more than the KV cache holds together, each get their own tokens and leave nothing."""
    prompts = [list(range(n, n + 20 + n)) for n in range(64)]
    requests = [engine.submit(prompt, max_tokens=5 + n) for n, prompt in enumerate(prompts)]
    engine.drain_until(lambda: all(request.finish for request in requests))
    for n, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
        assert (request.tokens, request.finish) == (expected_tokens(prompt, 5 + n), FinishReason.LENGTH)
    gauges = ("sequences_running", "sequences_waiting", "kv_blocks_used")
    engine.wait_for_counters(lambda counters: not any(counters[name] for name in gauges))


def test_idle_engine_starts_at_once(engine):
    """One request after another, each on an engine that has gone to sleep, is served."""
    for n in range(1, 6):
        request = engine.submit([n], max_tokens=1)
        engine.drain_until(lambda request=request: request.finish)
        assert request.tokens == expected_tokens([n], 1)


def test_cancel_frees_blocks(engine):
    """A cancel word ends a running request with ABORT before its next token, and its blocks are free again."""
    request = engine.submit([1] * 100, max_tokens=900)
    engine.drain_until(lambda: len(request.tokens) >= 3)
    engine.wait_for_counters(lambda counters: counters["kv_blocks_used"] > 0)
    engine.rings.consumer.cancel(request.ring)
    engine.drain_until(lambda: request.finish)
    assert request.finish == FinishReason.ABORT
    assert request.tokens == expected_tokens([1] * 100, len(request.tokens))
    assert len(request.tokens) < 900
    engine.wait_for_counters(lambda counters: counters["kv_blocks_used"] == 0)
    assert engine.rings.consumer.in_use == 0


def test_engine_waits_for_slow_readers_and_their_cancels(tmp_path):
    """With only full rings left the engine sleeps; space and a cancel, announced as the server does, wake it."""
    with engine_process(tmp_path, SYNTHETIC, ring_capacity=8) as engine:
        engine.wait_for(messages.Ready)
        slow, gone = engine.submit([1], max_tokens=30), engine.submit([2], max_tokens=30)
        for request in (slow, gone):
            engine.rings.consumer.pause(request.ring)
        engine.wait_for_counters(lambda counters: counters["steps"] == 8)
        assert (slow.tokens, gone.tokens) == ([], [])
        if engine.rings.consumer.cancel(gone.ring):
            engine.send(messages.Wake())
        for request in (slow, gone):
            engine.rings.consumer.resume(request.ring)
        engine.drain_until(lambda: slow.finish and gone.finish)
        assert (slow.tokens, slow.finish) == (expected_tokens([1], 30), FinishReason.LENGTH)
        assert (gone.tokens, gone.finish) == (expected_tokens([2], 8), FinishReason.ABORT)


def test_sleeping_engine_notices_a_reader_that_is_too_slow(tmp_path):
    """With nothing else to do and nobody who wakes it, the engine ends a sequence whose ring stays full."""
    with engine_process(tmp_path, SYNTHETIC, ring_capacity=8, slow_reader_timeout=0.05) as engine:
        engine.wait_for(messages.Ready)
        request = engine.submit([1], max_tokens=30)
        engine.rings.consumer.pause(request.ring)
        engine.drain_until(lambda: engine.rings.consumer.counters()["steps"] == 9)  # 8 tokens and the end
        engine.wait_for_counters(lambda counters: counters["kv_blocks_used"] == 0)
        engine.rings.consumer.resume(request.ring)
        engine.rings.drain()
        assert (request.tokens, request.finish) == (expected_tokens([1], 8), FinishReason.SLOW_READER)


def test_shutdown_aborts_what_runs_and_exits_0(engine):
    """After Shutdown every request ends with ABORT and the process exits with 0."""
    requests = [engine.submit([n], max_tokens=900) for n in range(3)]
    engine.drain_until(lambda: all(request.tokens for request in requests))
    engine.send(messages.Shutdown())
    engine.drain_until(lambda: all(request.finish for request in requests))
    assert {request.finish for request in requests} == {FinishReason.ABORT}
    assert engine.process.wait(PATIENCE) == 0


def test_end_of_control_channel_ends_the_engine(engine):
    """When the server's end of the control channel closes the engine exits, also while it is stepping."""
    request = engine.submit([1], max_tokens=900)
    engine.drain_until(lambda: request.tokens)
    engine.control.close()
    assert engine.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_process_group_are_the_servers_business(engine, number):
    """SIGINT from a terminal and SIGTERM from a service manager do not disturb the engine."""
    engine.process.send_signal(number)
    request = engine.submit([1])
    engine.drain_until(lambda: request.finish)
    assert request.finish == FinishReason.LENGTH


def test_death_of_the_parent_kills_the_engine():
    """SIGKILL of the process that started it ends the engine, even while others hold the control channel open."""
    control, engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    doorbell = create_doorbell()
    arena = Arena.create(num_rings=64, ring_capacity=8, epoch=1, named=False)
    parent = (
        "import os, subprocess, sys\n"
        "command, fds = sys.argv[5:], tuple(map(int, sys.argv[1:5]))\n"
        "command[command.index('--parent-pid') + 1] = str(os.getpid())\n"
        "print(subprocess.Popen(command, pass_fds=fds).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    _, life_line = LifeLine.create()
    fds = (engine_end.fileno(), doorbell, arena.descriptor, life_line)
    with subprocess.Popen(
        [sys.executable, "-c", parent, *map(str, fds), *engine_command(*fds, 0)],
        pass_fds=fds,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        pidfd = os.pidfd_open(int(server.stdout.readline()))
        control.settimeout(PATIENCE)
        configure = messages.Configure(engine=SYNTHETIC, slow_reader_timeout=60)
        control.sendall(frame(messages.encode(configure)))
        records = FrameDecoder().feed(control.recv(65536))
        assert isinstance(messages.decode_to_server(records[0]), messages.Attached)
        server.kill()
    assert ended(pidfd)
    os.close(pidfd)
    os.close(doorbell)
    os.close(life_line)
    control.close()
    engine_end.close()
    arena.close()


def test_engine_of_a_dead_parent_does_not_start(tmp_path):
    """An engine whose parent is another process than the one named (it died in between) exits at once."""
    control, engine_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with control, engine_end:
        end = engine_end.fileno()
        command = engine_command(end, end, end, end, os.getpid() + 1)
        done = subprocess.run(
            command, pass_fds=(engine_end.fileno(),), timeout=PATIENCE, check=False, capture_output=True, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"runner": "torch"}, "model.safetensors is damaged"),
        ({"model": "synthetic", "max_model_len": 9000}, "--max-model-len 9000"),
        ({"model": "synthetic", "block_size": 0}, "--block-size is 0"),
    ],
    ids=["corrupt weights", "length", "block size"],
)
def test_model_that_cannot_be_loaded_is_a_sentence(tmp_path, options, reason):
    """Failed carries one sentence, the exit code is 2, and no traceback is written."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with engine_process(tmp_path, EngineConfig(**{"model": str(tmp_path), **options})) as engine:
        failed = engine.wait_for(messages.Failed)
        assert reason in failed.message
        assert "\n" not in failed.message
        assert engine.process.wait(PATIENCE) == 2
        assert engine.log.read_text() == ""


def test_synthetic_engine_never_loads_torch(engine):
    """A process that runs the synthetic model has neither torch nor transformers in it."""
    request = engine.submit([1])
    engine.drain_until(lambda: request.finish)
    maps = Path(f"/proc/{engine.process.pid}/maps").read_text()
    assert "numpy" in maps
    assert "torch" not in maps
