"""Routes for operators: /health, /ready, /version, /metrics.

Owns their answers. None of them waits, so that they are true under any load. Does not know how the engine is started.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from rbee import __version__
from rbee.server.errors import Refusal
from rbee.server.http.refusals import headers_of
from rbee.server.http.responses import json_response
from rbee.server.protocols.openapi import Operation, Shape
from rbee.transport import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from rbee.server.link.supervisor import Supervisor
    from rbee.server.protocols.metrics import Metrics


_LEAVING = "The server is going to shut down; send new requests to another one."


class Health(Shape):
    """The answer to GET /health."""

    status: Literal["ok"]


class EngineFacts(Shape):
    """How the engine computes; `max_model_len` is for prompt and output together, in tokens."""

    runner: str
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    load_seconds: float
    kernels: str
    hidden_size: int
    has_head: bool


class IsReady(Shape):
    """The answer to GET /ready, with 200."""

    ready: Literal[True]
    state: Literal["ready"]
    model: str
    engine: EngineFacts
    rings_in_use: int


class StageProgress(Shape):
    """How much of a stage of loading is done."""

    stage: str
    done: int
    total: int


class IsNotReady(Shape):
    """The answer to GET /ready, with 503."""

    ready: Literal[False]
    state: str
    reason: str
    model: str
    progress_url: str | msgspec.UnsetType = msgspec.UNSET
    progress: StageProgress | msgspec.UnsetType = msgspec.UNSET


class Version(Shape):
    """The answer to GET /version."""

    version: str


class OperationsApi:
    """The operations routes of one server; `make_metrics` is called in a thread, because it may import much.

    `progress_url` streams the progress of loading.
    """

    def __init__(
        self, supervisor: Supervisor, model: str, make_metrics: Callable[[], Metrics], *, progress_url: str
    ) -> None:
        self._supervisor = supervisor
        self._model = model
        self._make_metrics = make_metrics
        self._progress_url = progress_url
        self._metrics: Metrics | None = None  # from the first scrape on

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", "/health", "Whether the server process answers.", answer=(Health,), needs_key=False),
            Operation(
                "GET",
                "/ready",
                "Whether a request sent now would be taken.",
                answer=(IsReady,),
                others={503: IsNotReady},
                needs_key=False,
            ),
            Operation("GET", "/version", "The version of the server.", answer=(Version,)),
            Operation("GET", "/metrics", "Counters and histograms for Prometheus.", kind="text/plain"),
        ]

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        """200 if a request sent now would be taken, else 503 with the state and the progress of loading."""
        supervisor = self._supervisor
        if supervisor.leaving:
            answer: dict[str, Any] = {"ready": False, "state": "draining", "reason": _LEAVING, "model": self._model}
            return json_response(answer, 503)
        state = supervisor.state.label
        try:
            engine = supervisor.check_ready()
        except Refusal as refusal:
            answer = {"ready": False, "state": state, "reason": str(refusal), "model": self._model}
            if supervisor.state is not ServerState.DRAINING:
                answer["progress_url"] = self._progress_url
            if supervisor.state is ServerState.LOADING and supervisor.progress is not None:
                progress = supervisor.progress
                answer["progress"] = {"stage": progress.stage, "done": progress.done, "total": progress.total}
            return json_response(answer, 503, headers_of(refusal))
        return json_response(
            {
                "ready": True,
                "state": state,
                "model": self._model,
                "engine": msgspec.structs.asdict(engine),
                "rings_in_use": supervisor.client.rings_in_use,
            }
        )

    async def version(self, request: Request) -> Response:  # noqa: ARG002 - starlette's signature
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """In the format that the Accept header asks for: Prometheus' text, or OpenMetrics."""
        if self._metrics is None:
            self._metrics = await asyncio.to_thread(self._make_metrics)
        text, media_type = self._metrics.render(request.headers.get("accept", ""))
        return Response(text, headers={"content-type": media_type})
