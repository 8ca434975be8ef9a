"""GET /v1/loading/progress: what the engine says while it loads, as a stream that ends when there is an outcome.

Owns its events. Does not know what is loaded, or how.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from rbee.server.http import sse
from rbee.server.http.writer import writer_of
from rbee.server.protocols.jobs.dialect import frame
from rbee.transport import ServerState

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from rbee.server.link.supervisor import Supervisor

READY = "ready"
_PERIOD = 0.1  # seconds between two looks at the engine, which reports once a second and at each stage
_OUTCOMES = frozenset({READY, "stopping", "failed"})


def progress_event(supervisor: Supervisor) -> dict[str, Any]:
    """How far the engine is now."""
    match supervisor.state:
        case ServerState.READY:
            return {"stage": READY}
        case ServerState.DRAINING:
            return {"stage": "stopping"}
        case ServerState.DEAD:
            return {"stage": "restarting" if supervisor.restarting else "failed"}
        case ServerState.STARTING:
            return _event("starting")
    progress = supervisor.progress
    if progress is None:
        return _event("loading")
    # The engine's last word comes before it takes requests.
    stage = "loaded" if progress.stage == READY else progress.stage
    return _event(stage, progress.layers_loaded, progress.layers_total, progress.memory_bytes)


def _event(stage: str, layers_loaded: int = 0, layers_total: int = 0, memory_bytes: int = 0) -> dict[str, Any]:
    return {
        "stage": stage,
        "layers_loaded": layers_loaded,
        "layers_total": layers_total,
        "memory_mb": memory_bytes // 2**20,
    }


class LoadingStream(Response):
    """An event for each change. It costs nothing beside the loading: there is no token that it could delay."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.background = None
        self._supervisor = supervisor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = writer_of(scope, receive, send)
        await writer.start(sse.HEADERS)
        writer.open(_Events())
        try:
            shown: dict[str, Any] = {}
            while not (writer.closed or shown.get("stage") in _OUTCOMES):
                if shown:
                    await asyncio.sleep(_PERIOD)
                event = progress_event(self._supervisor)
                if event != shown and not writer.paused:
                    writer.write(frame(event))
                    shown = event
            writer.write(sse.DONE)
            await writer.finish()
        finally:
            writer.close()


class _Events:
    """A `WriterListener`: the stream looks at its writer itself."""

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def on_half_closed(self) -> None: ...

    def on_closed(self) -> None: ...
