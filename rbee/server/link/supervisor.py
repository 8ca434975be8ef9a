"""Which requests the server takes, and when the engine process starts and ends.

Owns the states of the server and what a request is refused with in each of them. Does not know HTTP, tokens, or how an
engine process is run (`rbee.server.link.engine_process`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from rbee.errors import EngineUnavailableError
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.engine_process import EngineProcess
from rbee.transport import ServerState

if TYPE_CHECKING:
    from rbee.messages import Loading, Ready
    from rbee.server.link.engine_client import EngineClient
    from rbee.server.link.engine_process import EngineSettings

_log = logging.getLogger(__name__)

_NOT_LOADED = "The model is not loaded yet; ask /ready for progress and try again."
_REFUSALS = {  # message, seconds until a retry
    ServerState.STARTING: (_NOT_LOADED, 2),
    ServerState.LOADING: (_NOT_LOADED, 2),
    ServerState.DRAINING: ("The server is shutting down; send the request to another one.", 5),
    ServerState.DEAD: ("The engine process has died; the server has to be restarted.", 10),
}


class Supervisor:
    """Runs the engine process, and decides whether requests can be submitted. The `EngineOwner` of each epoch."""

    _engine: EngineProcess
    _settled: asyncio.Future[Ready]

    def __init__(self, settings: EngineSettings) -> None:
        self.num_rings = settings.num_rings
        self.ring_capacity = settings.ring_capacity
        self._settings = settings
        self._epoch = 0
        self._reset()

    def _reset(self) -> None:
        self.state = ServerState.STARTING
        self.progress: Loading | None = None  # the last record while loading
        self.ready: Ready | None = None  # the engine's own description, once it is ready
        self._stopping = False

    @property
    def client(self) -> EngineClient:
        """Of the present engine: from `start` on, also when its process has ended."""
        return self._engine.client

    async def start(self) -> None:
        """Start the engine process, again after `stop`; returns before it is ready.

        Raises:
            TransportError: no shared memory, file descriptors or processes left.
        """
        self._reset()
        self._settled = asyncio.get_running_loop().create_future()
        self._epoch += 1
        self._engine = EngineProcess(self._settings, self._epoch, self)
        await self._engine.start()

    async def wait_ready(self) -> Ready:
        """The engine's description when it is ready, or EngineUnavailableError with the reason."""
        return await asyncio.shield(self._settled)

    def check_ready(self) -> Ready:
        """The engine's description, or the Refusal that is true now."""
        if self.state is ServerState.READY and self.ready is not None:
            return self.ready
        message, retry_after = _REFUSALS[self.state]
        raise Refusal(RefusalKind.UNAVAILABLE, message, code=f"engine_{self.state.label}", retry_after=retry_after)

    def refuse_new(self) -> None:
        """Take no further requests; the open ones go on."""
        self._stopping = True
        if self.state is not ServerState.DEAD:
            self.state = ServerState.DRAINING

    def end_requests(self) -> None:
        self.refuse_new()
        self.client.fail_all(
            Refusal(
                RefusalKind.UNAVAILABLE,
                "The server is shutting down; this answer is not complete.",
                code="server_shutdown",
            )
        )

    async def stop(self, patience: float) -> None:
        """End all requests and the engine, and release everything.

        An engine that is not ready is killed at once, another one when it has not stopped within `patience` seconds.
        """
        self.end_requests()
        engine = self._engine
        if not engine.exited.is_set():
            if self.ready is None:
                engine.kill()
            engine.shutdown()
            try:
                async with asyncio.timeout(patience):
                    await engine.exited.wait()
            except TimeoutError:
                _log.warning("the engine has not stopped within %.0f s of being asked; it is killed", patience)
                engine.kill()
                await engine.exited.wait()
        engine.close()

    def kill(self) -> None:
        self._engine.kill()

    def on_attached(self) -> None:
        if not self._stopping:
            self.state = ServerState.LOADING

    def on_loading(self, progress: Loading) -> None:
        self.progress = progress
        _log.info("engine: %s (%d of %d)", progress.stage, progress.done, progress.total)

    def on_ready(self, ready: Ready) -> None:
        self.ready = ready
        if not self._stopping:
            self.state = ServerState.READY
        self._settled.set_result(ready)

    def on_died(self, how: str) -> None:
        self.state = ServerState.DEAD
        _, retry_after = _REFUSALS[self.state]
        self.client.engine_died(
            Refusal(
                RefusalKind.UNAVAILABLE,
                "The engine process died before this request was finished.",
                code="engine_died",
                retry_after=retry_after,
            )
        )
        if self.ready is not None and not self._stopping:
            _log.error("the engine process died (%s); new requests get 503", how)

    def on_failed(self, reason: str) -> None:
        if not self._stopping:
            _log.error("%s", reason)
        self._settled.set_exception(EngineUnavailableError(reason))
        self._settled.exception()  # marks it as read: asyncio logs an exception that was never read
