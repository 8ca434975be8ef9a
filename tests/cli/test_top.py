"""`rbee top`: the real command beside a real server, and beside a process that has only an arena."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import psutil
import pytest

from rbee.errors import ConfigError
from rbee.top import choose_server
from rbee.transport import FoundServer
from tests.raw_client import COMPLETIONS, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Shown = dict[str, Any]  # one line of `rbee top --json`

TOP = [sys.executable, "-m", "rbee.cli", "top"]
A_MINUTE = 600  # intervals of `watching`, after which what has not come will not come


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`rbee top` to its end."""
    environment = {"PATH": "/usr/bin:/bin"}
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment)


@contextlib.contextmanager
def watching(pid: int) -> Iterator[tuple[Iterator[Shown], subprocess.Popen[str]]]:
    """`rbee top --json` on a server, ten times per second: an iterator of what it prints, and the process."""
    options = ["--pid", str(pid), "--json", "--interval", "0.1"]
    with subprocess.Popen([*TOP, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield map(json.loads, process.stdout), process
        finally:
            process.kill()


def until(intervals: Iterator[Shown], condition: Callable[[Shown], bool]) -> list[Shown]:
    """The intervals up to the first one that has what a test waits for, which is the last."""
    seen: list[Shown] = []
    for interval in itertools.islice(intervals, A_MINUTE):
        seen.append(interval)
        if condition(interval):
            return seen
    pytest.fail(f"rbee top has shown only {seen}")


@pytest.mark.anyio
async def test_a_real_server_is_seen_at_work(start_server):
    """While a client reads a stream, an interval shows the stream, its tokens, and the engine that makes them."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "5") as server:
        engine = server.engine.pid
        async with Client(server.address) as client, anyio.create_task_group() as reading:
            stream = await client.open(COMPLETIONS, {"prompt": "go on", "max_tokens": 8000, "stream": True})
            events = stream.events()
            await anext(events)

            async def read() -> None:
                async for _ in events:
                    pass

            reading.start_soon(read)
            with watching(server.pid) as (intervals, _):
                seen = await anyio.to_thread.run_sync(until, intervals, shows_all)
            reading.cancel_scope.cancel()
    shown = seen[-1]
    assert (shown["server_pid"], shown["engine_pid"], shown["epoch"]) == (server.pid, engine, 1)
    assert shown["engine_state"] == "stepping"
    assert shown["streams"] == 1
    assert shown["since_epoch_start"]["tokens"] > 0
    assert 0 < shown["delivery_us"]["p50"] <= shown["delivery_us"]["p99"] <= shown["delivery_us"]["max"]
    assert shown["since_epoch_start"]["stale_wakeups"] == 0
    assert shown["sequences_running"] == 1
    assert 0 < shown["kv_blocks_used"] <= shown["kv_blocks"]


def shows_all(interval: Shown) -> bool:
    """Whether tokens were made and delivered in it, and each duration was taken at least once."""
    durations = ("delivery_us", "step_us", "wakeup_us", "loop_lag_us")
    return interval["per_second"]["tokens"] > 0 and all(interval[name]["count"] > 0 for name in durations)


DETACH = """
import subprocess, sys
server = subprocess.Popen([sys.executable, "-m", "rbee.cli", *sys.argv[1:]], start_new_session=True)
print(server.pid, flush=True)
"""


def test_a_detached_server_is_seen(tmp_path):
    """One in a session of its own, whose parent has ended, and which has no terminal."""
    with (tmp_path / "log").open("w") as log:
        starter = subprocess.Popen(
            [sys.executable, "-c", DETACH, "serve", "--port", "0", "--model", "synthetic"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert starter.stdout is not None
        with starter.stdout:
            pid = int(starter.stdout.readline())
            end = os.pidfd_open(pid)
            try:
                assert any("ready" in line for line in starter.stdout)
                starter.wait()
                assert psutil.Process(pid).ppid() != starter.pid
                [engine] = [child.pid for child in psutil.Process(pid).children() if "rbee.engine" in child.cmdline()]
                shown = json.loads(run("--pid", str(pid), "--once", "--json", "--interval", "0.1").stdout)
            finally:
                signal.pidfd_send_signal(end, signal.SIGTERM)
                select.select([end], [], [], 60)
                os.close(end)
    assert (shown["server_pid"], shown["engine_pid"], shown["epoch"]) == (pid, engine, 1)


def test_a_restarted_engine_is_followed(server):
    """The view goes on with the new epoch, over a time without an engine, and no rate is ever negative."""
    server.step(1000, 1_000_000)
    with watching(server.pid()) as (intervals, process):
        seen = until(intervals, lambda interval: interval["epoch"] == 1)
        server.stop_engine()
        seen += until(intervals, lambda interval: interval["engine_state"] == "none")
        server.start_engine(2)
        server.step(10, 1_000_000)
        seen += until(intervals, lambda interval: interval.get("since_epoch_start", {}).get("tokens") == 10)
        seen += [next(intervals)]
        assert process.poll() is None
    with_engine = [interval for interval in seen if interval["engine_state"] != "none"]
    assert all(rate >= 0 for interval in with_engine for rate in interval["per_second"].values())
    assert [interval["since_epoch_start"]["tokens"] for interval in with_engine][-2:] == [10, 10]
    assert [interval["per_second"]["tokens"] > 0 for interval in with_engine][-2:] == [True, False]
    assert {interval["server_pid"] for interval in seen} == {server.pid()}


def test_an_engine_replaced_at_once_is_followed(server):
    """Also when no interval ends between the old arena and the new one, and both exist for a while."""
    server.step(1000, 1_000_000)
    with watching(server.pid()) as (intervals, _):
        seen = until(intervals, lambda interval: interval["epoch"] == 1)
        server.start_engine(2)
        server.step(10, 1_000_000)
        seen += until(intervals, lambda interval: interval["epoch"] == 2 and interval["per_second"]["tokens"] > 0)
        server.stop_engine()
        seen += [next(intervals), next(intervals)]
    assert [interval["epoch"] for interval in seen][-3:] == [2, 2, 2]
    assert all(rate >= 0 for interval in seen for rate in interval["per_second"].values())


def test_end_of_the_server_ends_the_view(start_server):
    """The command says that the server has ended, on stderr, and its exit code is 0."""
    with start_server("--model", "synthetic") as server, watching(server.pid) as (intervals, process):
        next(intervals)
        assert server.stop() == 0
        assert len(list(itertools.islice(intervals, A_MINUTE))) < A_MINUTE
        assert process.wait(60) == 0
        assert process.stderr.read() == f"rbee: server {server.pid} has ended.\n"


def test_interrupt_ends_the_view_quietly(server):
    """Ctrl-C: exit code 0 and not a word."""
    with watching(server.pid()) as (intervals, process):
        next(intervals)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_count_ends_the_view(server):
    """--count N prints N intervals."""
    result = run("--pid", str(server.pid()), "--json", "--interval", "0.05", "--count", "3")
    assert (result.returncode, result.stderr) == (0, "")
    assert [json.loads(line)["epoch"] for line in result.stdout.splitlines()] == [1, 1, 1]


@pytest.mark.parametrize(("how", "views"), [(["--once"], 1), (["--count", "2"], 2)])
def test_without_a_terminal_it_is_plain_text(server, how, views):
    """A pipe gets one view after the other, without control characters."""
    result = run("--pid", str(server.pid()), "--interval", "0.05", *how)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(f"rbee top  server {server.pid()}  ") == views
    assert "\x1b" not in result.stdout


def test_a_terminal_is_redrawn_and_restored(server):
    """It is drawn on the terminal's second screen, and the last view is left on the first one, cursor and all."""
    server.step(12, 1_000_000)
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    command = [*TOP, "--pid", str(server.pid()), "--interval", "0.05", "--count", "3"]
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        screen = b""
        with contextlib.suppress(OSError):  # EIO: the other end has been closed
            while data := os.read(ours, 65536):
                screen += data
        assert process.wait(60) == 0
    os.close(ours)
    before, _, rest = screen.decode().partition("\x1b[?1049h")
    second, _, first = rest.partition("\x1b[?1049l")
    assert before == ""
    assert second.count("full-ring pauses") == 3
    assert "measuring" in second
    assert first.count("full-ring pauses") == 1
    assert second.count("\x1b[?25l") <= second.count("\x1b[?25h") + first.count("\x1b[?25h")


def test_without_a_server_there_is_a_sentence():
    """Nothing to look at says what to do; a server that cannot be looked at is named."""
    with pytest.raises(ConfigError, match="There is no server to look at; start one with `rbee serve`"):
        choose_server([])
    with pytest.raises(ConfigError, match="There is no server"):
        choose_server([FoundServer(7, "rbee serve", None, "Process 7 holds a strange segment.")])


def test_the_only_server_is_taken(capsys):
    """One that cannot be looked at is no choice, but its problem is told."""
    servers = [FoundServer(7, "rbee serve", None, "Process 7 holds a strange segment."), FoundServer(8, "rbee", 3)]
    assert choose_server(servers) == 8
    assert capsys.readouterr().err == "rbee: skipped: Process 7 holds a strange segment.\n"


def test_several_servers_are_listed(server, synthetic_server):
    """Without --pid the choice is the user's: each server is listed with pid, epoch and command line."""
    result = run("--once")
    assert result.returncode == 2
    assert re.search(rf"--pid {server.pid()} +epoch 1 +\S*python", result.stderr)
    assert re.search(
        rf"--pid {synthetic_server.pid} +epoch 1 +\S*python\S* -m rbee.cli serve .*synthetic", result.stderr
    )
    assert "servers are running; choose one" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pid", "0"], "0 is not in the range"),
        (["--interval", "0"], "0.0 is not in the range"),
        (["--count", "0"], "0 is not in the range"),
        (["--pid", str(os.getpid()), "--once"], f"Process {os.getpid()} has no arena: it is no rbee server"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_exit_code_2(arguments, sentence):
    """A bad option, or a process that is no server, is named, without a traceback."""
    result = run(*arguments)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unreadable_arena_is_a_sentence(server):
    """An arena of another version of rbee is refused with the reason."""
    server.hold_segment(b"rbee_shm\x63".ljust(65536, b"\0"))
    server.stop_engine()
    result = run("--pid", str(server.pid()), "--once")
    assert result.returncode == 2
    assert "layout version 99" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_is_instant():
    """`rbee top --help` loads neither the view nor the transport."""
    script = "import sys; sys.argv = ['rbee', 'top', '--help']\nimport atexit, rbee.cli\n"
    script += "atexit.register(lambda: print(*sorted(m for m in sys.modules)))\nrbee.cli.main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "rbee.cli" in loaded
    assert not loaded & {"rbee.top", "rbee.transport", "rich", "numpy", "uvicorn"}
