"""Which requests the server takes, and when the engine process starts, starts again and ends.

Owns the states of the server and what a request is refused with in each of them. Does not know HTTP, tokens, how an
engine process is run (`rbee.server.link.engine_process`), or how often it may die (`rbee.server.link.restarts`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING

from rbee.errors import EngineUnavailableError, TransportError
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.ends import SequenceEnds
from rbee.server.link.engine_process import EngineProcess
from rbee.server.link.restarts import RestartBudget
from rbee.server.link.unbegun import UnbegunSequences
from rbee.transport import ServerState

if TYPE_CHECKING:
    from rbee.messages import Loading, Ready
    from rbee.server.link.engine_client import EngineClient
    from rbee.server.link.engine_process import EngineSettings
    from rbee.transport import Sample

_log = logging.getLogger(__name__)

_NOT_LOADED = "The model is not loaded yet; ask /ready for progress and try again."
_REFUSALS = {  # message, seconds until a retry
    ServerState.STARTING: (_NOT_LOADED, 2),
    ServerState.LOADING: (_NOT_LOADED, 2),
    ServerState.DRAINING: ("The server is shutting down; send the request to another one.", 5),
    ServerState.DEAD: ("The engine process has died; the server has to be restarted.", 10),
}
_HUNG = "The engine process makes no progress and is being killed; try again."
_RESTARTING = "The engine process has died and is being started again; try again."
_LONGEST_RETRY_AFTER = 60  # seconds


class Supervisor:
    """Runs the engine process, and decides whether requests can be submitted. The `EngineOwner` of each epoch.

    An engine that dies after it was ready is replaced by the next epoch, as often as `restarts` allows (None: never).
    """

    _engine: EngineProcess
    _settled: asyncio.Future[Ready]
    _given_up: asyncio.Future[str]

    def __init__(self, settings: EngineSettings, restarts: RestartBudget | None = None) -> None:
        self.num_rings = settings.num_rings
        self.ring_capacity = settings.ring_capacity
        self.max_num_seqs = settings.config.max_num_seqs
        # Counted over all epochs.
        self.ends = SequenceEnds()
        self.restarts = {"died": 0, "hung": 0}  # by the cause of the death
        self._settings = settings
        self._budget = restarts or RestartBudget(0, 0)
        self._unbegun = UnbegunSequences(self.on_sequence_end)
        self._epoch = 0
        self._load_seconds = 0.0  # of the last engine
        self._delay: float | None = None  # seconds from an unexpected end to the next start; None: there is none
        self._replacing = False  # an engine has died, or is ending, and the next one is not ready
        self._restarting: asyncio.Task[None] | None = None
        self.leaving = self._stopping = False  # leaving: requests are taken, but new clients should go elsewhere
        self._reset()

    def _reset(self) -> None:
        self._unexpected = False  # the engine is ending, or has ended, although it was ready and should go on
        self.state = ServerState.STARTING
        self.progress: Loading | None = None  # the last record while loading
        self.ready: Ready | None = None  # the engine's own description, once it is ready
        self._hung = False

    @property
    def client(self) -> EngineClient:
        """Of the present engine: from `start` on, also when its process has ended."""
        return self._engine.client

    @property
    def restarting(self) -> bool:
        """Whether the engine has died, or is being killed, and the next one is not ready."""
        killed = self._hung and not self._engine.exited.is_set()
        return (killed or self._replacing) and not self._stopping

    @property
    def device(self) -> str:
        """Where the engine computes, as far as that is known."""
        return self._settings.config.device if self.ready is None else self.ready.device

    @property
    def engine_memory(self) -> int | None:
        """Bytes that the engine process holds for itself; None while there is none."""
        return self._engine.memory_bytes if self._epoch else None

    def sample(self) -> Sample | None:
        """What the processes of this epoch have counted; None while there is no engine."""
        return self._engine.sample() if self._epoch else None

    async def start(self) -> None:
        """Start the engine process, again after `stop`; returns before it is ready.

        Raises:
            TransportError: no shared memory, file descriptors or processes left.
        """
        loop = asyncio.get_running_loop()
        self._settled, self._given_up = loop.create_future(), loop.create_future()
        self._restarting, self._replacing, self.leaving, self._stopping = None, False, False, False
        await self._start_epoch()

    async def _start_epoch(self) -> None:
        self._reset()
        self._epoch += 1
        engine = EngineProcess(self._settings, self._epoch, self)
        await engine.start()
        self._engine = engine

    async def wait_ready(self) -> Ready:
        """The engine's description when it is ready, or EngineUnavailableError with the reason."""
        return await asyncio.shield(self._settled)

    async def wait_given_up(self) -> str:
        """How the engine ended, when it has died too often to be started again."""
        return await asyncio.shield(self._given_up)

    def check_ready(self) -> Ready:
        """The engine's description, or the Refusal that is true now."""
        if self.state is ServerState.READY and self.ready is not None:
            return self.ready
        message, retry_after = self._refusal()
        raise Refusal(RefusalKind.UNAVAILABLE, message, code=f"engine_{self.state.label}", retry_after=retry_after)

    def _refusal(self) -> tuple[str, int]:
        """Message, and seconds until a retry."""
        again = min(max(math.ceil(self._load_seconds), 1), _LONGEST_RETRY_AFTER)
        if self._hung and not self._engine.exited.is_set():
            return _HUNG, again
        if self._replacing and not self._stopping:
            return _RESTARTING, again
        return _REFUSALS[self.state]

    def look_away(self) -> None:
        """Say that the server is going to stop, and take requests until `refuse_new`."""
        self.leaving = True

    def refuse_new(self) -> None:
        """Take no further requests; the open ones go on, but for those whose client has lost its connection."""
        self._stopping = True
        if self._epoch:
            self.client.end_orphans()
        if self.state is not ServerState.DEAD:
            self.state = ServerState.DRAINING
        self._unbegun.fail_all(_shutting_down())

    def end_requests(self) -> None:
        self.refuse_new()
        self.client.fail_all(_shutting_down())

    async def stop(self, patience: float) -> None:
        """End all requests and the engine, and release everything.

        An engine that is not ready is killed at once, another one when it has not stopped within `patience` seconds.
        """
        self.end_requests()
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})  # a cancellation of `stop` itself passes
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
        self._load_seconds = ready.load_seconds
        if not self._stopping:
            self.state = ServerState.READY
            self._unbegun.submit_all(self.client.submit)  # before any new request
        if self._settled.done():
            self._restarting, self._replacing = None, False
            _log.warning("the engine is ready again (epoch %d)", self._epoch)
        else:
            self._settled.set_result(ready)

    def on_hung(self) -> None:
        self.state = ServerState.DEAD
        self._hung = True
        _log.error("the engine has made no progress for %g s; it is killed", self._settings.hang_timeout)
        self._engine.kill()

    def on_sequence_end(self, reason: int, seconds: float) -> None:
        self.ends.count(reason, seconds)

    def on_ending(self) -> None:
        self.state = ServerState.DEAD
        self._unexpected = self._settled.done() and not self._stopping
        if self._unexpected:
            self._delay = self._budget.take()
            self._replacing = self._delay is not None
        if self._replacing and not self._stopping:
            self.client.engine_died(self._died(), self._unbegun.keep)
        else:
            self.client.engine_died(self._died())
        if waiting := len(self._unbegun):
            _log.warning("%d sequences without a token wait for the next engine", waiting)

    def on_died(self, how: str) -> None:
        how = "it hung" if self._hung else how
        if self._unexpected and self._stopping:  # meanwhile
            _log.error("the engine process died (%s)", how)
        elif self._unexpected:
            self._replace_engine(how, self._delay)

    def _died(self) -> Refusal:
        _, retry_after = self._refusal()
        return Refusal(
            RefusalKind.UNAVAILABLE,
            "The engine process died before this request was finished.",
            code="engine_died",
            retry_after=retry_after,
        )

    def on_failed(self, reason: str) -> None:
        if not self._stopping:
            _log.error("%s", reason)
        if not self._settled.done():
            self._settled.set_exception(EngineUnavailableError(reason))
            self._settled.exception()  # marks it as read: asyncio logs an exception that was never read

    def _replace_engine(self, how: str, delay: float | None) -> None:
        """Start the next epoch when its time has come, or give up."""
        if delay is None:
            self._restarting, self._replacing = None, False
            limit, window = self._budget.limit, self._budget.window
            after = f" after {limit} restarts in {window:.0f} s" if limit else ""
            _log.error("the engine process died (%s)%s; new requests get 503", how, after)
            self._unbegun.fail_all(self._died())
            self._given_up.set_result(how)
            return
        self.restarts["hung" if self._hung else "died"] += 1
        _log.error("the engine process died (%s); it is started again in %.1f s", how, delay)
        self._restarting = asyncio.create_task(self._start_again(delay))

    async def _start_again(self, delay: float) -> None:
        await self._engine.ended.wait()
        self._engine.close()
        await asyncio.sleep(delay)
        if self._stopping:
            return
        try:
            await self._start_epoch()
        except TransportError as error:
            self.state = ServerState.DEAD
            self._replace_engine(str(error), self._budget.take())


def _shutting_down() -> Refusal:
    return Refusal(
        RefusalKind.UNAVAILABLE, "The server is shutting down; this answer is not complete.", code="server_shutdown"
    )
