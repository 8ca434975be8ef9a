"""One epoch of the engine: the real process, and the events that its owner gets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import resource
import signal
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rbee.errors import TransportError
from rbee.server.link.engine_process import EngineProcess
from rbee.transport import Observer, ServerState
from tests.server.link.link_parts import SETTINGS, child_engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import psutil

    from rbee.messages import Loading, Ready

pytestmark = pytest.mark.anyio

_PATIENCE = 60.0  # seconds after which a test that waits for the process fails


class RecordingOwner:
    """Keeps the events of an engine process."""

    state = ServerState.STARTING

    def __init__(self) -> None:
        self.events: list[str] = []
        self.changed = asyncio.Event()

    def on_attached(self) -> None:
        """Keep it."""
        self._add("attached")

    def on_loading(self, progress: Loading) -> None:
        """Not all runners load anything."""

    def on_ready(self, ready: Ready) -> None:
        """Keep the runner's name."""
        self._add(f"ready: {ready.runner}")

    def on_hung(self) -> None:
        self._add("hung")

    def on_sequence_end(self, reason: int, seconds: float) -> None:
        """There are no sequences."""

    def on_ending(self) -> None:
        self._add("ending")

    def on_died(self, how: str) -> None:
        """Keep how."""
        self._add(f"died: {how}")

    def on_failed(self, reason: str) -> None:
        """Keep why."""
        self._add(f"failed: {reason}")

    async def wait_for(self, word: str) -> None:
        """Return when there has been an event that begins so."""
        async with asyncio.timeout(_PATIENCE):
            while not any(event.startswith(word) for event in self.events):
                self.changed.clear()
                await self.changed.wait()

    def _add(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()


@contextlib.asynccontextmanager
async def started(owner: RecordingOwner, *, epoch: int = 1, **options: Any) -> AsyncIterator[EngineProcess]:
    """An engine process with these options of the engine, released at the end of the block."""
    config = dataclasses.replace(SETTINGS.config, **options)
    engine = EngineProcess(dataclasses.replace(SETTINGS, config=config), epoch, owner)
    await engine.start()
    try:
        yield engine
    finally:
        engine.close()


def resources() -> tuple[int, list[str], list[psutil.Process]]:
    """What this process holds: the number of its descriptors, arenas and engines."""
    resource_tracker.ensure_running()  # which the first arena of the process starts, and leaves running
    arenas = [path.name for path in Path("/dev/shm").glob(f"rbee-{os.getpid()}-*")]
    return len(list(Path("/proc/self/fd").iterdir())), arenas, child_engines()


async def test_events_of_an_ordinary_life() -> None:
    """Attached, ready, died; after a request to stop the exit code is 0, and nothing is left."""
    before = resources()
    owner = RecordingOwner()
    async with started(owner) as engine:
        await owner.wait_for("ready")
        engine.shutdown()
        await owner.wait_for("died")
        assert engine.exited.is_set()
    assert owner.events == ["attached", "ready: synthetic", "ending", "died: exit code 0"]
    await asyncio.sleep(0)  # the transport of the control channel closes its socket in the next turn
    assert resources() == before


async def test_engine_that_cannot_start_fails_with_its_reason() -> None:
    """The reason comes after the death, and is the engine's own sentence."""
    owner = RecordingOwner()
    async with started(owner, max_model_len=9000):
        await owner.wait_for("failed")
    assert [event.partition(":")[0] for event in owner.events] == ["attached", "ending", "died", "failed"]
    assert owner.events[2] == "died: exit code 2"
    assert "--max-model-len 9000" in owner.events[3]


async def test_engine_that_is_killed_before_it_is_ready_fails() -> None:
    """There is no sentence of its own then: the reason is how it died."""
    owner = RecordingOwner()
    async with started(owner) as engine:
        engine.kill()
        await owner.wait_for("failed")
    assert owner.events[-3:] == [
        "ending",
        "died: killed by SIGKILL, perhaps out of memory",
        "failed: The engine process died before it was ready (killed by SIGKILL, perhaps out of memory).",
    ]


async def test_crash_is_an_event_with_its_signal() -> None:
    """An engine that was ready dies without failing."""
    owner = RecordingOwner()
    async with started(owner):
        await owner.wait_for("ready")
        [child] = child_engines()
        child.send_signal(signal.SIGSEGV)
        await owner.wait_for("died")
    assert owner.events == ["attached", "ready: synthetic", "ending", "died: killed by SIGSEGV"]


# Before the engine's own code: at SIGUSR1 its main thread ends, and its process goes on.
ENDING_ALONE = """
import ctypes, signal, threading, time

def end(*_):
    ctypes.PyDLL(None).pthread_exit(None)

threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
signal.signal(signal.SIGUSR1, end)
"""


async def test_engine_is_ending_before_its_process_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the kernel frees its memory: nothing comes of it any more, and clients need not wait for the rest."""
    (tmp_path / "sitecustomize.py").write_text(ENDING_ALONE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    owner = RecordingOwner()
    async with started(owner) as engine:
        await owner.wait_for("ready")
        [child] = child_engines()
        child.send_signal(signal.SIGUSR1)
        await owner.wait_for("ending")
        assert not engine.exited.is_set()
        engine.kill()
        await owner.wait_for("died")
    assert owner.events[-2:] == ["ending", "died: killed by SIGKILL, perhaps out of memory"]


async def test_each_epoch_has_an_arena_of_its_own() -> None:
    """A second start is a second object with the next number, which observers of the server see."""
    for epoch in (1, 2):
        owner = RecordingOwner()
        async with started(owner, epoch=epoch) as engine:
            with Observer(os.getpid()) as observer:
                assert observer.epoch == engine.epoch == epoch
            await owner.wait_for("ready")
            assert engine.client.rings_in_use == 0


async def test_observers_see_the_owners_state() -> None:
    """The heartbeat writes it from the start."""
    owner = RecordingOwner()
    owner.state = ServerState.DRAINING
    async with started(owner):
        with Observer(os.getpid()) as observer:
            sample = observer.sample()
            assert sample is not None
            assert sample.counters["server_state"] == ServerState.DRAINING


async def test_closing_kills_what_still_runs() -> None:
    """Without a request to stop, and without an event."""
    before = resources()
    owner = RecordingOwner()
    async with started(owner):
        await owner.wait_for("ready")
    await asyncio.sleep(0)
    assert resources() == before
    assert owner.events == ["attached", "ready: synthetic"]


async def test_arena_that_does_not_fit_is_an_error() -> None:
    """Nothing is left of such a start."""
    before = resources()
    engine = EngineProcess(dataclasses.replace(SETTINGS, num_rings=2**16, ring_capacity=2**20), 1, RecordingOwner())
    with pytest.raises(TransportError, match="shared memory"):
        await engine.start()
    assert resources() == before


@contextlib.contextmanager
def only(num_descriptors: int) -> Iterator[None]:
    """This process can open so many more."""
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = itertools.islice((number for number in itertools.count() if number not in used), num_descriptors, None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(free), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_nothing_is_left_of_a_start_without_enough_descriptors() -> None:
    """Whichever is missing: each attempt to start the engine again would leave some more."""
    before = resources()
    for number in range(2, 8):  # two are for Python's SharedMemory
        with only(number), pytest.raises(TransportError):
            await EngineProcess(SETTINGS, 1, RecordingOwner()).start()
        assert resources() == before, f"with {number} of them"
