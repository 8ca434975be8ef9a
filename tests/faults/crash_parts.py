"""What the tests of crash points share: the build that has them, plans for processes, and streams that are read anyhow.

The points are those of native/include/rbee/crash_points.h, and of Python the returns of functions: docs/transport.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nanobind
import psutil

from rbee.errors import TransportError
from rbee.transport import EngineState
from rbee.transport.observer import Observer
from tests.faults.resume_parts import decode_chunked
from tests.raw_client import COMPLETIONS, Client, request_bytes
from tests.server.server_parts import PATIENCE, expected
from tests.transport.mutations import CMAKE, ENVIRONMENT, NATIVE

if TYPE_CHECKING:
    from tests.conftest import Server

_BUILD = NATIVE.parent / "build" / "crash-points"
STREAMS = 16


@dataclass(frozen=True)
class Point:
    """A place in one of the processes, and which of its passages is meant."""

    name: str
    process: str  # "engine" or "server"
    passage: int

    @property
    def at_start(self) -> bool:
        """Whether the process gets there before it is ready."""
        return self.passage <= 2 and self.name in {"producer_made", "rbee.transport.control/ControlChannel.send"}

    @property
    def asleep(self) -> bool:
        """Whether it is passed only around the sleep of an engine beside a full ring."""
        return self.name in {"sleep_announced", "sleep_withdrawn", "sleep_taken"}

    def order(self, number: int) -> str:
        """What the process has in its plan to get this signal here."""
        return f"{self.name}:{self.passage}:{number}"

    def passed_by(self, server: Server) -> bool:
        """Whether a process of this server has got the signal here."""
        return f"crash point {self.name}:{self.passage}\n" in server.log.read_text()


# Of the points in Python, the returns between which something becomes visible to the other process or outlives a crash.
_PYTHON = {
    "server": {
        "multiprocessing.shared_memory/SharedMemory.__init__": [1],
        "multiprocessing.shared_memory/SharedMemory.unlink": [1],
        "rbee.transport.arena/_reserve": [1],
        "rbee.transport.arena/create_doorbell": [1],
        "rbee.server.link.engine_process/_spawn": [1],
        "rbee.server.link.engine_process/EngineProcess._send": [1, 9],
        "rbee.server.link.engine_client/EngineClient.cancel": [1],
    },
    "engine": {
        "rbee.transport.control/ControlChannel.send": [1, 2],
        "rbee.engine.engine_core/EngineCore.submit": [9],
        "rbee.engine.publisher/Publisher.tokens": [20],
        "rbee.engine.publisher/Publisher.commit": [20],
    },
}
# Of the native points, all. Where nothing stands, the first passage: they are passed once in a process's life, or
# rarely. The others are in the middle of a step of 16 streams.
_PASSAGES = {
    ("ring_opened", "engine"): [5],
    ("commit_begun", "engine"): [12],
    ("record_written", "engine"): [200],
    ("tail_published", "engine"): [1, 203],
    ("finish_published", "engine"): [1, 2],
    ("ready_marked", "engine"): [14],
    ("rung_asleep", "engine"): [9],
    ("eventfd_written", "engine"): [9],
    ("counted", "engine"): [60, 61],
    ("gauge_set", "engine"): [700, 704],
    ("eventfd_emptied", "server"): [9],
    ("ready_taken", "server"): [9],
    ("frames_sent", "server"): [100],
    ("records_shown", "server"): [103],
    ("head_published", "server"): [106],
    ("doorbell_armed", "server"): [9],
    ("counted", "server"): [60, 61],
}


def native_points() -> list[tuple[str, str]]:
    """(name, process) of every native point; one that both processes pass comes twice."""
    header = (NATIVE / "include" / "rbee" / "crash_points.h").read_text()
    listed = re.findall(r"^    X\((\w+), (\w+)\)", header, re.MULTILINE)
    return [(name, process) for name, whose in listed for process in ("engine", "server") if whose in {process, "both"}]


def points(process: str) -> list[Point]:
    """All points of a process, each with every passage that tests choose."""
    native = [
        Point(name, process, passage)
        for name, whose in native_points()
        if whose == process
        for passage in _PASSAGES.get((name, whose), [1])
    ]
    return native + [Point(name, process, passage) for name, some in _PYTHON[process].items() for passage in some]


def build_native() -> Path:
    """The transport's native module with its crash points; built again only after a change."""
    options: list[str | Path] = [
        "-D",
        "RBEE_CRASH_POINTS=ON",
        "-D",
        "CMAKE_BUILD_TYPE=None",
        "-D",
        f"Python_EXECUTABLE={sys.executable}",
    ]
    options += ["-D", f"nanobind_DIR={nanobind.cmake_dir()}"]
    options += ["-D", "CMAKE_UNITY_BUILD=ON", "-D", "CMAKE_UNITY_BUILD_BATCH_SIZE=0"]  # builds in a quarter of the time
    for command in (["-S", NATIVE, "-B", _BUILD, *options], ["--build", _BUILD, "--target", "_native"]):
        done = subprocess.run([CMAKE, *command], capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert done.returncode == 0, done.stdout + done.stderr
    [module] = _BUILD.glob("_native.*.so")
    return module


class CrashSite:
    """A folder from which servers get the native module with crash points and their plans."""

    def __init__(self, folder: Path, native: Path) -> None:
        self._folder = folder
        shutil.copy(Path(__file__).with_name("crash_overlay.py"), folder / "sitecustomize.py")
        (folder / "native").write_text(str(native))
        self.plan("server")
        self.plan("engine")

    def plan(self, process: str, *orders: str) -> None:
        """What the processes of this kind do that start from now on."""
        (self._folder / f"{process}.plan").write_text(" ".join(orders))

    def command(self, *options: str) -> list[str]:
        """Runs `rbee serve` with these options here."""
        rbee = [sys.executable, "-m", "rbee.cli", "serve", "--port", "0", *options]
        return ["env", f"PYTHONPATH={self._folder}", *rbee]

    def processes(self) -> list[psutil.Process]:
        """All that were started here and live."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("PYTHONPATH") == str(self._folder)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
        return found

    def wait_until_empty(self, pid: int) -> None:
        """Return when nothing is left of the server that had this pid: no process, no name in /dev/shm."""
        deadline = time.monotonic() + PATIENCE
        while (left := self.processes()) or (left := [*Path("/dev/shm").glob(f"rbee-{pid}-*")]):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


@dataclass
class Answer:
    """What a client has read of a streamed response."""

    prompt: str
    wanted: int  # tokens
    raw: bytes
    left: bool = False  # it went away by itself

    def end(self) -> str:
        """How it ended: "whole", "left", "cut", or the code of an error.

        AssertionError if its tokens are not the right ones, or if there is anything behind an end.
        """
        head, _, body = self.raw.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return str(json.loads(body)["error"]["code"]) if body else "cut"
        *frames, cut = decode_chunked(body).split(b"\n\n")
        data = [frame.removeprefix(b"data: ") for frame in frames if not frame.startswith(b":")]
        done = data[-1:] == [b"[DONE]"]
        events = [json.loads(one) for one in data[: len(data) - done]]
        failed = events.pop()["error"]["code"] if events and "error" in events[-1] else ""
        text = "".join(event["choices"][0]["text"] for event in events)
        assert text == expected(self.prompt, len(text)), "tokens are missing, repeated or in another order"
        reasons = [event["choices"][0]["finish_reason"] for event in events]
        assert not any(reasons[:-1])
        if self.left:
            return "left"
        if not body.endswith(b"0\r\n\r\n"):
            return "cut"
        assert done
        assert not cut
        if failed:
            assert not any(reasons)
            return str(failed)
        assert (len(text), reasons[-1]) == (self.wanted, "length")
        return "whole"


async def _read(
    client: Client, prompt: str, tokens: int, *, leave: bool = False, wait: asyncio.Event | None = None
) -> Answer:
    """One stream to its end. With `leave` the client goes after some tokens; with `wait` it reads only from then on."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": tokens, "stream": True}
    answer = Answer(prompt, tokens, b"", left=leave)
    try:
        request = request_bytes(COMPLETIONS, body, "Connection: close")
        reader, writer = await client.send_raw(request, receive_buffer=16384 if wait else None)
        if wait:
            await wait.wait()
        while piece := await reader.read(65536):
            answer.raw += piece
            if leave and answer.raw.count(b'"text"') >= 5:
                break
        if leave:
            writer.transport.abort()
    except ConnectionError:  # the server is gone
        pass
    return answer


async def _until_asleep(server: Server, over: asyncio.Event) -> None:
    """Set `over` when the engine sleeps beside a full ring, or a process has died."""
    epoch = None
    while not over.is_set():
        with contextlib.suppress(TransportError), Observer(server.pid) as observer:
            sample = observer.sample()
            if sample is not None and epoch in {None, sample.epoch}:
                epoch = sample.epoch
                now = sample.counters
                if now["rings_in_use"] and now["full_ring_pauses"] and now["engine_state"] == EngineState.IDLE:
                    over.set()
            else:
                over.set()
        if server.process.poll() is not None:
            over.set()
        await asyncio.sleep(0.01)


async def load(server: Server, *, tokens: int = 120, slow: bool = False) -> list[Answer]:
    """16 streams at once: two end soon, one is left by its client; with `slow` one reads only when all must wait."""
    asleep = asyncio.Event()
    async with Client(server.address) as client:
        lengths = [3, 7] + [tokens] * (STREAMS - 3 - slow)
        reads = [_read(client, f"stream {number}", length) for number, length in enumerate(lengths)]
        reads.append(_read(client, "leaves", 8000, leave=True))
        if slow:
            reads.append(_read(client, "slow", 4000, wait=asleep))
            async with asyncio.TaskGroup() as group:
                group.create_task(_until_asleep(server, asleep))
                return [await task for task in [group.create_task(read) for read in reads]]
        return await asyncio.gather(*reads)
