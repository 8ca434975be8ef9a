"""The life of the engine process, as the server sees it: start, load, ready, death, end.

Owns the process, the arena and the control channel, and releases all three. Death is learned from a pidfd and the
control channel's end, never from a timeout. Does not know HTTP, tokens, or what the engine does all day.
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
from typing import TYPE_CHECKING, Literal

from rbee.errors import EngineUnavailableError, TransportError
from rbee.messages import Attached, Configure, Failed, Loading, Ready, Shutdown, ToEngine, decode_to_server, encode
from rbee.server.errors import ApiError
from rbee.server.link.engine_client import EngineClient
from rbee.server.link.heartbeat import Pulse
from rbee.transport import Arena, Consumer, ServerState, create_doorbell
from rbee.transport.control import FrameDecoder, frame

if TYPE_CHECKING:
    from rbee.config import EngineConfig

_log = logging.getLogger(__name__)

State = Literal["starting", "loading", "ready", "draining", "dead"]

_LAST_WORDS = 1.0  # seconds an engine may live on after it closed the control channel, to flush its log

_REFUSALS: dict[State, tuple[str, int]] = {
    "starting": ("The model is not loaded yet; ask /ready for progress and try again.", 2),
    "loading": ("The model is not loaded yet; ask /ready for progress and try again.", 2),
    "draining": ("The server is shutting down; send the request to another one.", 5),
    "dead": ("The engine process has died; the server has to be restarted.", 10),
}


class Supervisor:
    """One engine process.

    Attributes:
        state: where it is in its life.
        progress: the last progress record while loading.
        ready: the engine's own description, once it is ready.
        client: submits requests to it.
        num_rings: sequences that there can be at once.
        ring_capacity: records that a sequence's ring holds.
        settled: resolved when the engine is ready, or failed with an EngineUnavailableError when it cannot be.
    """

    client: EngineClient

    def __init__(
        self,
        engine: EngineConfig,
        *,
        max_requests: int,
        ring_capacity: int,
        max_queued_requests: int = 0,
        busy_poll: bool = False,
        debug: bool = False,
    ) -> None:
        """Describe the engine to start.

        Args:
            engine: what it needs to know.
            max_requests: requests held at once; rounded up to a multiple of 64.
            ring_capacity: tokens a request's ring holds, a power of two.
            max_queued_requests: of these, how many may wait for the engine; 0: as many as there are.
            busy_poll: look for tokens without sleeping while a request is open.
            debug: have it log at debug level.
        """
        self._engine = engine
        self.num_rings = -(-max_requests // 64) * 64
        self.ring_capacity = ring_capacity
        self._max_queued = max_queued_requests
        self._busy_poll = busy_poll
        self._debug = debug
        self.state: State = "starting"
        self.progress: Loading | None = None
        self.ready: Ready | None = None
        self.settled: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._resources = contextlib.ExitStack()
        self._exited = asyncio.Event()
        self._control_ended = asyncio.Event()
        self._failure = ""

    async def start(self) -> None:
        """Start the engine process; returns before it is ready.

        Raises:
            TransportError: no shared memory, file descriptors or processes left.
        """
        loop = asyncio.get_running_loop()
        try:
            self._arena = Arena.create(num_rings=self.num_rings, ring_capacity=self.ring_capacity, epoch=1)
            self._resources.callback(self._arena.close)
            self._resources.callback(self._arena.unlink)
            doorbell = create_doorbell()
            self._resources.callback(os.close, doorbell)
            consumer = Consumer(self._arena, doorbell)
            self._resources.callback(consumer.close)
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = _spawn(theirs.fileno(), doorbell, debug=self._debug)
            self._resources.callback(self._process.wait)
            self._resources.callback(self._process.kill)  # does nothing to a process that has been waited for
            pidfd = os.pidfd_open(self._process.pid)
            self._resources.callback(os.close, pidfd)
            ours.setblocking(False)
            self._transport, _ = await loop.create_unix_connection(lambda: _ControlProtocol(self), sock=ours)
        except OSError as error:
            self._resources.close()
            raise TransportError(f"The engine process cannot be started: {error.strerror}.") from error
        self._resources.callback(self._transport.abort)
        self.client = EngineClient(
            consumer,
            self.num_rings,
            self._send,
            give_up=self.kill,
            max_running=self._engine.max_num_seqs,
            max_queued=self._max_queued,
            busy_poll=self._busy_poll,
        )
        pulse = Pulse(consumer, lambda: ServerState[self.state.upper()], self.client.on_wake)
        pulse.start()
        self._resources.callback(pulse.stop)
        loop.add_reader(doorbell, self.client.on_wake)
        self._resources.callback(loop.remove_reader, doorbell)
        loop.add_reader(pidfd, self._on_exit, pidfd)
        self._resources.callback(loop.remove_reader, pidfd)
        self._send(Configure(engine=self._engine, arena_name=self._arena.name, epoch=1))

    def check_ready(self) -> Ready:
        """The engine's description, or an ApiError with status 503."""
        if self.state != "ready" or self.ready is None:
            message, retry_after = _REFUSALS.get(self.state, _REFUSALS["loading"])
            raise ApiError(503, message, code=f"engine_{self.state}", headers={"Retry-After": str(retry_after)})
        return self.ready

    def refuse_new(self) -> None:
        """From now on no request is taken; the open ones go on."""
        if self.state != "dead":
            self.state = "draining"

    async def stop(self, patience: float) -> None:
        """End the engine, at once if it is not ready yet, else by asking; after `patience` seconds it is killed.

        Everything is released when this returns: the process, the shared memory, every descriptor.
        """
        if not self._exited.is_set():
            if self.ready is None:
                self.kill()
            self._send(Shutdown())
            try:
                async with asyncio.timeout(patience):
                    await self._exited.wait()
            except TimeoutError:
                _log.warning("the engine has not stopped within %.0f s of being asked; it is killed", patience)
                self.kill()
                await self._exited.wait()
        self._resources.close()

    def kill(self) -> None:
        """End the engine now."""
        self._process.kill()

    def on_record(self, payload: bytes) -> None:
        """A record has come from the engine."""
        match decode_to_server(payload):
            case Attached(pid=pid):
                self._arena.unlink()
                _log.debug("engine %d has attached the arena", pid)
                self.state = "loading"
            case Loading() as progress:
                self.progress = progress
                _log.info("engine: %s (%d of %d)", progress.stage, progress.done, progress.total)
            case Ready() as ready:
                self.ready = ready
                if self.state != "draining":
                    self.state = "ready"
                if not self.settled.done():
                    self.settled.set_result(ready)
            case Failed(message=message):
                self._failure = message

    def on_control_end(self) -> None:
        """The engine has closed its end of the control channel: it is dead or dying."""
        self._control_ended.set()
        if not self._exited.is_set():
            loop = asyncio.get_running_loop()
            last_words = loop.call_later(_LAST_WORDS, self.kill)
            self._resources.callback(last_words.cancel)
        self._check_never_ready()

    def _on_exit(self, pidfd: int) -> None:
        """The pidfd is readable: the process is gone. What it committed before is in the arena still."""
        asyncio.get_running_loop().remove_reader(pidfd)
        returncode = self._process.wait()
        stopping = self.state == "draining"
        self.state = "dead"
        error = ApiError(
            503,
            "The engine process died before this request was finished.",
            code="engine_died",
            headers={"Retry-After": str(_REFUSALS["dead"][1])},
        )
        self.client.engine_died(error)
        self._exited.set()
        if self.ready is not None and not stopping:
            _log.error("the engine process died (%s); new requests get 503", _how(returncode))
        if not self._failure:
            self._failure = f"The engine process died before it was ready ({_how(returncode)})."
        self._check_never_ready()

    def _check_never_ready(self) -> None:
        """Tell whoever waits that the engine will not be ready, once it is gone and its last record has been read."""
        if self._exited.is_set() and self._control_ended.is_set() and not self.settled.done():
            self.settled.set_exception(EngineUnavailableError(self._failure))

    def _send(self, record: ToEngine) -> None:
        if not self._control_ended.is_set() and not self._exited.is_set():
            self._transport.write(frame(encode(record)))


class _ControlProtocol(asyncio.Protocol):
    """The server's end of the control channel."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._decoder = FrameDecoder()

    def data_received(self, data: bytes) -> None:
        for payload in self._decoder.feed(data):
            self._supervisor.on_record(payload)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._supervisor.on_control_end()


def _spawn(control: int, doorbell: int, *, debug: bool) -> subprocess.Popen[bytes]:
    """Start `python -m rbee.engine` with its two descriptors; its stdout goes to our stderr."""
    command = [sys.executable, "-m", "rbee.engine"]
    command += ["--control-fd", str(control), "--doorbell-fd", str(doorbell), "--parent-pid", str(os.getpid())]
    command += ["--debug"] if debug else []
    return subprocess.Popen(  # noqa: S603 - our own words only
        command, pass_fds=(control, doorbell), stdin=subprocess.DEVNULL, stdout=sys.stderr
    )


def _how(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"exit code {returncode}"
    hint = ", perhaps out of memory" if returncode == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-returncode).name}{hint}"
