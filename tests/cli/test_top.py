"""`rbee top`: the real command beside a real server, and beside one whose numbers are known."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
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
import time

import psutil
import pytest
from rich.console import Console

from rbee.errors import ConfigError
from rbee.top import choose_server, view
from rbee.top.interval import EVENTS, Interval
from rbee.transport import FoundServer, Observer
from tests.observed import observed_server
from tests.raw_client import COMPLETIONS, Client

TOP = [sys.executable, "-m", "rbee.cli", "top"]
# A test run in the background ignores SIGINT, and would hand that down.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import rbee.cli; "
INTERRUPTIBLE += "rbee.cli.main()"
A_MINUTE = 600  # intervals of `watching`, after which what has not come will not come


@pytest.fixture
def server():
    """A process with an arena of epoch 1, and nothing else of a server."""
    with observed_server() as server:
        server.start_engine(1)
        yield server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`rbee top` to its end."""
    environment = {"PATH": "/usr/bin:/bin"}
    return subprocess.run([*TOP, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment)


@contextlib.contextmanager
def watching(pid: int):
    """`rbee top --json` on a server, ten times per second: an iterator of what it prints, and the process."""
    options = ["--pid", str(pid), "--json", "--interval", "0.1"]
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "top", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield map(json.loads, process.stdout), process
        finally:
            process.kill()


def until(intervals, condition):
    """The intervals up to the first one that has what a test waits for, which is the last."""
    seen = []
    for interval in itertools.islice(intervals, A_MINUTE):
        seen.append(interval)
        if condition(interval):
            return seen
    pytest.fail(f"rbee top has shown only {seen}")


def measure(server, act) -> Interval:
    """The interval of half a second in which `act()` happened."""
    with Observer(server.pid()) as observer:
        before = observer.sample()
        act()
        return Interval.between(before, observer.sample(), 0.5)


def drawn(interval: Interval | None, server: int) -> list[str]:
    """The lines of the view on a terminal with 80 columns, without colours."""
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False)
    console.print(view.draw(interval, server))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_rates_are_those_of_the_interval(server):
    """What happened before the interval has no part in a rate, but in the sum since the epoch's start."""
    server.step(100, 1_000_000)

    def act():
        server.step(10, 1_000_000)
        server.step(20, 3_000_000)

    shown = measure(server, act).as_json()
    assert shown["per_second"]["tokens"] == 60
    assert shown["per_second"]["steps"] == 4
    assert shown["since_epoch_start"]["tokens"] == 130
    assert shown["since_epoch_start"]["python_tokens"] == 130
    assert shown["step_us"]["count"] == 2
    assert shown["step_us"]["p50"] == pytest.approx(1000, rel=1 / 16)
    assert shown["step_us"]["p99"] == pytest.approx(3000, rel=1 / 16)
    assert shown["loop_lag_us"]["max"] == pytest.approx(20, rel=1 / 16)
    assert shown["delivery_us"] == {"count": 0, "p50": None, "p99": None, "p999": None, "max": None}
    assert shown["per_second"]["wakes_written"] + shown["per_second"]["wakes_elided"] == 4
    assert shown["gc_pause_mean_us"] == 3000
    assert (shown["streams"], shown["sequences_running"], shown["sequences_waiting"]) == (1, 3, 2)
    assert (shown["kv_blocks_used"], shown["kv_blocks"]) == (1024, 4096)
    assert (shown["server_pid"], shown["epoch"], shown["engine_state"]) == (server.pid(), 1, "stepping")
    assert shown["server_state"] == "loading"
    assert 0 <= shown["server_silence_s"] <= shown["engine_silence_s"]


def test_nothing_has_no_rate_and_no_percentile(server):
    """An interval in which nothing happened is zeros and nulls, not a division by zero."""
    shown = measure(server, lambda: None).as_json()
    assert set(shown["per_second"].values()) == {0}
    assert (shown["wakes_elided_share"], shown["gc_pause_mean_us"]) == (None, None)
    assert shown["prompt_cached_share"] is None
    assert (shown["engine_silence_s"], shown["engine_state"]) == (None, "starting")


def test_a_new_epoch_counts_from_zero(server):
    """Where the second sample is of a later epoch, the first one is not subtracted from it."""
    server.step(100, 1_000_000)

    def restart():
        server.start_engine(2)
        server.step(10, 1_000_000)

    interval = measure(server, restart)
    assert (interval.now.epoch, interval.rate("tokens"), interval.histograms["step"].count) == (2, 20, 1)


def changed(server, **counters: int) -> Interval:
    """An interval at whose end the counters of the server's arena are these."""
    with Observer(server.pid()) as observer:
        sample = observer.sample()
    now = dataclasses.replace(sample, counters=sample.counters | counters)
    return Interval.between(sample, now, 1.0)


def test_view_says_what_was_measured(server):
    """Each number stands beside its name."""
    text = "\n".join(drawn(measure(server, lambda: server.step(40, 12_000_000, 12_000_000)), server.pid()))
    for pattern in (
        rf"rbee top  server {server.pid()}  engine \d+  epoch 1  stepping",
        r"heartbeats  engine: .* s.*  server: .* s",
        r"streams +1\n",
        r"sequences +3 running, 2 waiting\n",
        r"KV cache .* 1,024 of 4,096 blocks, 25.0%",
        r"step +1[12]\.\d ms +1[12]\.\d ms +1[12]\.\d ms +1[12]\.\d ms +2\n",
        r"wakeup +[\d.]+ .s .* 1\n",
        r"event-loop lag +(\d\d\.\d us +){4}1\n",
        r"delivery +- +- +- +- +0\n",
        r"tokens +80.0 +40 ",
        r"rendered in Python +80.0 +40\n",
        r"gc pauses, 3.0 ms +2.0 +1\n",
        r"Rates and durations of the last 0.5 s; durations are known to 1/16.",
    ):
        assert re.search(pattern, text), f"{pattern} is not in:\n{text}"


def test_share_of_cached_prompt_tokens(server):
    """What the prefix cache had of the interval's prompts stands beside them."""
    server.step(1, 1_000_000)
    interval = changed(server, prompt_tokens=407, cached_prompt_tokens=105)  # it has 7 and 5 before
    assert interval.as_json()["prompt_cached_share"] == 0.25
    assert re.search(r"cached tokens, 25% +100 +105", "\n".join(drawn(interval, 1)))


def test_view_fits_a_terminal(server):
    """All of it is within 80 columns and 24 lines, with nothing cut off, also when the numbers are large."""
    most = {name: 2**32 - 1 for name in EVENTS if name != "python_tokens"}
    server.step(1000, 33_000_000_000)
    most |= {"engine_pid": 2**22, "tokens_drained": 2**50, "kv_blocks": 2**24, "kv_blocks_used": 2**24}
    interval = changed(server, **most)
    lines = drawn(interval, 2**22)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for words in ("wakes elided, 50%", "full-ring pauses", "16,777,216 of 16,777,216 blocks, 100.0%"):
        assert words in text
    assert re.search(r"tokens +4,294M +4,294M", text)
    assert re.search(r"rendered in Python +1,125T +1,125T", text)


def coloured(interval: Interval) -> str:
    """The view with its colours."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard", highlight=False)
    console.print(view.draw(interval, 4711))
    return console.file.getvalue()


def test_what_should_not_be_is_red(server):
    """A lost wakeup and silent processes are shown as warnings, and only then."""
    red = "\x1b[1;31m"
    server.step(1, 1_000_000)
    now = time.monotonic_ns() + 3600 * 10**9
    alive = {"engine_heartbeat_ns": now, "server_heartbeat_ns": now}
    assert red not in coloured(changed(server, **alive))
    assert f"{red}stale wakeups" in coloured(changed(server, **alive, stale_wakeups=1))
    assert red not in coloured(changed(server, **(alive | {"engine_heartbeat_ns": 1}), progress=1)), (
        "a long step is no hang"
    )
    text = coloured(changed(server, engine_heartbeat_ns=1, server_heartbeat_ns=1))
    assert re.search(re.escape(red) + r"  engine: silent for \d+\.\d s", text)
    assert re.search(re.escape(red) + r"  server: silent for \d+\.\d s", text)


def test_a_server_without_an_engine_is_a_sentence():
    """Between two engines there are no numbers, and the view says why."""
    assert drawn(None, 4711) == ["rbee top  server 4711  no engine: it is being replaced, or the server ends"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (99_999, "99,999"), (100_000, "100k"), (99_999_999, "99,999k"), (10**8, "100M")]
)
def test_quantities_stay_short(number, text):
    """A large number is cut down to what a column holds, and says so with its unit."""
    assert view._quantity(number) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(None, "-"), (400, "0.4 us"), (99_960, "100 us"), (999_400, "999 us"), (999_600, "1.0 ms"), (2.5e9, "2.5 s")],
)
def test_durations_have_the_unit_that_fits(ns, text):
    """Two or three digits, and never four."""
    assert view._duration(ns) == text


async def streamed_while(server, command: list[str]) -> tuple[int, str]:
    """Run a command while a client reads a stream from its first token on; its exit code and stdout."""
    async with Client(server.address) as client:
        stream = await client.open(COMPLETIONS, {"prompt": "go on", "max_tokens": 8000, "stream": True})
        events = stream.events()
        await anext(events)

        async def read() -> None:
            async for _ in events:
                pass

        reading = asyncio.ensure_future(read())
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return process.returncode, output.decode()


def test_a_real_server_is_seen_at_work(start_server):
    """While a client reads a stream, one interval shows the stream, its tokens, and the engine that makes them."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "5") as server:
        engine = server.engine.pid
        command = [*TOP, "--pid", str(server.pid), "--once", "--json", "--interval", "0.5"]
        returncode, output = asyncio.run(streamed_while(server, command))
    assert returncode == 0
    shown = json.loads(output)
    assert (shown["server_pid"], shown["engine_pid"], shown["epoch"]) == (server.pid, engine, 1)
    assert shown["engine_state"] == "stepping"
    assert shown["streams"] == 1
    assert shown["per_second"]["tokens"] > 0
    assert shown["since_epoch_start"]["tokens"] > 0
    assert shown["delivery_us"]["count"] > 0
    assert 0 < shown["delivery_us"]["p50"] <= shown["delivery_us"]["p99"] <= shown["delivery_us"]["max"]
    assert shown["since_epoch_start"]["stale_wakeups"] == 0
    assert shown["sequences_running"] == 1
    assert 0 < shown["kv_blocks_used"] <= shown["kv_blocks"]
    assert shown["step_us"]["count"] > 0
    assert shown["wakeup_us"]["count"] > 0
    assert shown["loop_lag_us"]["count"] > 0


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
