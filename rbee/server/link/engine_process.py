"""One epoch of the engine: its arena, doorbell, child process, life line, pidfd, control channel, client and heartbeat.

Owns all of these and releases them in `close`. The life line shows that the process is ending, the pidfd and the end of
the control channel show that it has; no timeout does. A watchdog shows that a process which lives has stopped working.
Does not know which requests are taken, or what follows a death: that is its owner's policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rbee.child import GROUP_SIGNALS
from rbee.errors import TransportError
from rbee.messages import Attached, Configure, Failed, Loading, Ready, Shutdown, ToEngine, decode_to_server, encode
from rbee.process_memory import private_memory
from rbee.server.link.admission import Admission
from rbee.server.link.engine_client import EngineClient
from rbee.server.link.heartbeat import Heartbeat
from rbee.server.link.watchdog import Watchdog
from rbee.transport import Arena, Consumer, LifeLine, create_doorbell, read_sample
from rbee.transport.control import FrameDecoder, frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.config import EngineConfig
    from rbee.logs import LogFormat
    from rbee.transport import Sample, ServerState

_log = logging.getLogger(__name__)

_EXIT_GRACE = 1.0  # seconds between the end of the control channel and SIGKILL, in which the engine flushes its log


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What every epoch of the engine has in common. The engine itself is sent the first two."""

    config: EngineConfig
    slow_reader_timeout: float  # seconds that a ring may be full
    num_rings: int  # sequences that there can be at once, a multiple of 64
    ring_capacity: int  # records that a sequence's ring holds, a power of two
    admission: Admission = field(default_factory=Admission)
    busy_poll: bool = False
    retry_unstarted: bool = False  # requests without a token when their engine dies go to the next one
    hang_timeout: float = 0.0  # seconds without a sign of life after which an engine hangs; 0: never
    log_format: LogFormat = "text"
    debug: bool = False


class EngineOwner(Protocol):
    """Receives an EngineProcess's events.

    Attached, loading, ready, hung, each or none; then ending and died, each once; perhaps failed.
    """

    @property
    def state(self) -> ServerState:
        """The state that observers of the arena see."""

    def on_attached(self) -> None: ...

    def on_loading(self, progress: Loading) -> None: ...

    def on_ready(self, ready: Ready) -> None: ...

    def on_hung(self) -> None:
        """A ready engine has shown no sign of life for `hang_timeout`."""

    def on_ending(self) -> None:
        """The engine computes and commits nothing any more. `client` still has the tokens that it committed."""

    def on_died(self, how: str) -> None:
        """The process has ended, for example with "exit code 2"."""

    def on_sequence_end(self, reason: int, seconds: float) -> None:
        """A sequence has ended; see `EngineClient`."""

    def on_failed(self, reason: str) -> None:
        """After `on_died`, if the engine never was ready: a sentence for the user."""


class EngineProcess:
    """The engine from its start to its end; the next start, with the next epoch, is another object."""

    client: EngineClient  # from `start` on

    def __init__(self, settings: EngineSettings, epoch: int, owner: EngineOwner) -> None:
        self.epoch = epoch
        self.exited = asyncio.Event()  # the process has ended
        self.ended = asyncio.Event()  # and its last record has been read
        self._settings = settings
        self._owner = owner
        self._control_ended = False
        self._ending = False
        self._life_line: LifeLine | None = None
        self._waiter: threading.Thread | None = None  # waits for the end of the life line
        self._was_ready = False
        self._failure = ""
        self._watchdog: Watchdog | None = None  # while the engine is ready
        self._resources = contextlib.ExitStack()

    async def start(self) -> None:
        """Start the process; returns before it is ready.

        Raises:
            TransportError: no shared memory, file descriptors or processes left.
        """
        settings = self._settings
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as resources:
            self._arena = arena = Arena.create(
                num_rings=settings.num_rings, ring_capacity=settings.ring_capacity, epoch=self.epoch, named=False
            )
            resources.callback(arena.close)
            try:
                doorbell = create_doorbell()
                resources.callback(os.close, doorbell)
                consumer = Consumer(arena, doorbell)
                resources.callback(consumer.close)
                ours, theirs = socket.socketpair()
                unconnected = resources.enter_context(contextlib.ExitStack())
                unconnected.callback(ours.close)
                with theirs:
                    configure = Configure(engine=settings.config, slow_reader_timeout=settings.slow_reader_timeout)
                    ours.sendall(frame(encode(configure)))  # before the event loop's next turn, which may come late
                    self._life_line, life_line = LifeLine.create()
                    resources.callback(self._drop_life_line)
                    with os.fdopen(life_line):
                        self._process = _spawn(theirs.fileno(), doorbell, arena.descriptor, life_line, settings)
                resources.callback(self._process.wait)
                resources.callback(self._process.kill)  # does nothing to a process that has been waited for
                pidfd = os.pidfd_open(self._process.pid)
                resources.callback(os.close, pidfd)
                ours.setblocking(False)
                self._transport, _ = await loop.create_unix_connection(
                    lambda: _ControlProtocol(self._on_record, self._on_control_end), sock=ours
                )
                unconnected.pop_all()  # the transport has it
            except OSError as error:
                raise TransportError(f"The engine process cannot be started: {error.strerror}.") from error
            resources.callback(self._transport.abort)
            self.client = EngineClient(
                consumer,
                settings.num_rings,
                self._send,
                give_up=self.kill,
                admission=settings.admission,
                busy_poll=settings.busy_poll,
                keep_unbegun=settings.retry_unstarted,
                on_end=self._owner.on_sequence_end,
            )
            heartbeat = Heartbeat(consumer, lambda: self._owner.state, self.client.on_wake, self._look)
            heartbeat.start()
            resources.callback(heartbeat.stop)
            self.client.start(doorbell)
            resources.callback(self.client.stop)
            loop.add_reader(pidfd, self._on_exit, pidfd)
            resources.callback(loop.remove_reader, pidfd)
            self._resources = resources.pop_all()

    def sample(self) -> Sample | None:
        """What both processes have counted in the arena; None once the engine is ending, or if it broke the arena."""
        if self._ending:
            return None
        try:
            return read_sample(self._arena.buffer)
        except TransportError:
            return None

    @property
    def memory_bytes(self) -> int | None:
        """What the process holds for itself; None if it has ended. Costs some 10 us."""
        if self.exited.is_set():
            return None
        return private_memory(self._process.pid) or None  # until it is waited for, the kernel has nothing

    def shutdown(self) -> None:
        """Ask the engine to end what runs, and to exit."""
        self._send(Shutdown())

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Release everything; a process that still runs is killed. Afterwards the owner gets no events."""
        self._stop_watching()
        self._ending = True
        self._resources.close()
        if self.exited.is_set():
            self._on_control_end()
        self._control_ended = True

    def _stop_watching(self) -> None:
        self._watchdog = None

    def _on_record(self, payload: bytes) -> None:
        record = decode_to_server(payload)
        if self._ending and not isinstance(record, Failed):
            return  # it is not any more what it says
        match record:
            case Attached(pid=pid):
                _log.debug("engine %d has attached the arena", pid)
                self._watch_life_line()
                self._owner.on_attached()
            case Loading() as progress:
                self._owner.on_loading(progress)
            case Ready() as ready:
                self._was_ready = True
                self._owner.on_ready(ready)
                if self._settings.hang_timeout:
                    self._watchdog = Watchdog(self._settings.hang_timeout)
            case Failed(message=message):
                self._failure = message

    def _look(self) -> None:
        if self._watchdog is not None and self._watchdog.hangs(self.client.engine_signs, time.monotonic()):
            self._watchdog = None
            self._owner.on_hung()

    def _on_control_end(self) -> None:
        if self._control_ended:
            return
        self._control_ended = True
        if self.exited.is_set():
            self._report_failure()
        else:
            self._resources.callback(asyncio.get_running_loop().call_later(_EXIT_GRACE, self.kill).cancel)

    def _watch_life_line(self) -> None:
        """From now on the engine holds it."""
        loop = asyncio.get_running_loop()
        line = self._life_line
        assert line is not None, "it is released at the very end"

        def wait() -> None:
            line.wait()
            loop.call_soon_threadsafe(self._on_ending)

        self._waiter = threading.Thread(target=wait, name="life line", daemon=True)
        self._waiter.start()

    def _drop_life_line(self) -> None:
        """To be called when the process has ended, and with it the wait."""
        if self._waiter is not None:
            self._waiter.join()
        self._waiter = self._life_line = None

    def _on_ending(self) -> None:
        if not self._ending:
            self._ending = True
            self._stop_watching()
            self._owner.on_ending()

    def _on_exit(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        self._on_ending()  # if it has ended before it held its life line, or this turn of the loop came late
        how = _how(self._process.wait())
        self._owner.on_died(how)
        self.exited.set()
        if not self._failure:
            self._failure = f"The engine process died before it was ready ({how})."
        if self._control_ended:
            self._report_failure()

    def _report_failure(self) -> None:
        """Called once, when the process has ended and its last record has been read."""
        self.ended.set()
        if not self._was_ready:
            self._owner.on_failed(self._failure)

    def _send(self, record: ToEngine) -> None:
        if not self._control_ended and not self.exited.is_set():
            self._transport.write(frame(encode(record)))


class _ControlProtocol(asyncio.Protocol):
    def __init__(self, on_record: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_record = on_record
        self._on_end = on_end
        self._decoder = FrameDecoder()

    def data_received(self, data: bytes) -> None:
        for payload in self._decoder.feed(data):
            self._on_record(payload)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._on_end()


def _spawn(
    control: int, doorbell: int, arena: int, life_line: int, settings: EngineSettings
) -> subprocess.Popen[bytes]:
    """Start `python -m rbee.engine` with its four descriptors; its stdout goes to our stderr."""
    command = [sys.executable, "-m", "rbee.engine"]
    command += ["--control-fd", str(control), "--doorbell-fd", str(doorbell), "--arena-fd", str(arena)]
    command += ["--life-line-fd", str(life_line)]
    command += ["--parent-pid", str(os.getpid())]
    command += ["--log-format", settings.log_format]
    command += ["--debug"] if settings.debug else []
    # The engine has these blocked until it ignores them. Those that come to this process meanwhile wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 - our own words only
            command, pass_fds=(control, doorbell, arena, life_line), stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    hint = ", perhaps out of memory" if returncode == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-returncode).name}{hint}"
