"""The routes of the jobs protocol.

Owns the way from a request to its answer. Does not know fields or limits (`rbee.server.protocols.jobs.reader`), nor
what becomes of a job (`rbee.server.protocols.jobs.registry`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from rbee.server.http.responses import json_response
from rbee.server.protocols.ignored_fields import warning_header
from rbee.server.protocols.jobs import answers, refusals
from rbee.server.protocols.jobs.loading import LoadingStream
from rbee.server.protocols.jobs.reader import JobReader, read_cancel
from rbee.server.protocols.jobs.registry import Job
from rbee.server.protocols.jobs.schemas import CancelBody, JobBody
from rbee.server.protocols.openapi import Body, Operation
from rbee.server.protocols.parameters import DEADLINE_HEADER
from rbee.server.streams.exchange import ParkedGeneration, requester_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from rbee.server.http.body import Bodies
    from rbee.server.http.refusals import RefusalFormat
    from rbee.server.protocols.jobs.registry import Jobs
    from rbee.server.streams.exchange import Backend
    from rbee.server.text.served_model import ServedModel

_JOBS = "/v1/jobs"
_INFERENCE = "/v1/inference"  # the older name
_CANCEL = "/v1/cancel"
_LOADING = "/v1/loading"
PROGRESS = _LOADING + "/progress"


class JobsApi:
    """The routes of one server. With `lenient` unknown fields are ignored, else refused."""

    def __init__(self, backend: Backend, model: ServedModel, jobs: Jobs, bodies: Bodies, *, lenient: bool) -> None:
        self._backend = backend
        self._jobs = jobs
        self._bodies = bodies
        supervisor = backend.supervisor
        self._reader = JobReader(
            model,
            num_rings=supervisor.num_rings,
            ring_capacity=supervisor.ring_capacity,
            lenient=lenient,
            engine_memory=lambda: supervisor.engine_memory,
        )

    def routes(self) -> list[Route]:
        return [
            Route(_JOBS, self.start, methods=["POST"]),
            Route(_INFERENCE, self.start, methods=["POST"]),
            Route(_JOBS + "/{id}/stream", self.stream, methods=["GET"]),
            Route(_INFERENCE + "/{id}/stream", self.stream, methods=["GET"]),
            Route(_JOBS + "/{id}", self.delete, methods=["DELETE"]),
            Route(_INFERENCE + "/{id}", self.delete_inference, methods=["DELETE"]),
            Route(_CANCEL, self.cancel, methods=["POST"]),
            Route(PROGRESS, self.loading, methods=["GET"]),
        ]

    def operations(self) -> list[Operation]:
        body, cancel = Body(JobBody), Body(CancelBody)
        started, cancelled = (answers.JobAccepted,), (answers.JobCancelled,)
        operation = partial(Operation, error=refusals.JobRefusal)
        read = partial(operation, events=answers.STREAMED, kind=None, refusals=(404, 409))
        delete = partial(operation, refusals=(404,))
        return [
            operation("POST", _JOBS, "Start a job.", body, answer=started),
            operation("POST", _INFERENCE, "Start a job.", body, answer=started),
            read("GET", _JOBS + "/{id}/stream", "The events of a job, for its one reader."),
            read("GET", _INFERENCE + "/{id}/stream", "The events of a job, for its one reader."),
            delete("DELETE", _JOBS + "/{id}", "Cancel a job.", answer=cancelled),
            delete("DELETE", _INFERENCE + "/{id}", "Cancel a job.", status=204),
            operation("POST", _CANCEL, "Cancel a job.", cancel, status=202, answer=cancelled),
            Operation(
                "GET", PROGRESS, "How far the engine is with the model.", events=(answers.LoadingProgress,), kind=None
            ),
        ]

    def formats(self) -> dict[str, RefusalFormat]:
        """How refusals are answered, by path prefix."""
        return dict.fromkeys((_JOBS, _INFERENCE, _CANCEL, _LOADING), refusals.answer)

    async def start(self, request: Request) -> Response:
        """The job generates from now on, whoever asks for its stream, and when."""
        supervisor = self._backend.supervisor
        async with self._bodies.reading(request) as body:
            received_ns = time.monotonic_ns()
            engine = supervisor.check_ready()
            deadlines = request.headers.getlist(DEADLINE_HEADER)
            asked = await self._bodies.work(request, body, self._reader.read, deadlines, engine, received_ns)
        generation, dialect, ignored = asked
        requester = requester_of(request.scope)
        await supervisor.client.make_room(generation.n, len(generation.prompt), requester)
        parked = ParkedGeneration(self._backend, generation, dialect, requester)
        self._jobs.add(Job(request.state.caller, parked, dialect))
        job_id = dialect.answer_id
        answer = json_response({"job_id": job_id, "sse_url": f"{_JOBS}/{job_id}/stream"})
        answer.raw_headers.extend(warning_header(ignored))
        return answer

    async def stream(self, request: Request) -> Response:
        _only_get(request)
        return await self._jobs.claim(request.state.caller, request.path_params["id"])

    async def delete(self, request: Request) -> Response:
        return self._cancelled(request, request.path_params["id"], 200)

    async def delete_inference(self, request: Request) -> Response:
        self._jobs.cancel(request.state.caller, request.path_params["id"])
        return Response(status_code=204)

    async def cancel(self, request: Request) -> Response:
        async with self._bodies.reading(request) as body:
            job_id = await self._bodies.work(request, body, read_cancel)
        return self._cancelled(request, job_id, 202)

    async def loading(self, request: Request) -> Response:
        _only_get(request)
        return LoadingStream(self._backend.supervisor)

    def _cancelled(self, request: Request, job_id: str, status: int) -> Response:
        """The answer is the same for a job that has ended or never was: it does not run."""
        self._jobs.cancel(request.state.caller, job_id)
        return json_response({"job_id": job_id, "status": "cancelled"}, status)


def _only_get(request: Request) -> None:
    """Starlette takes HEAD for GET, and a HEAD would take a stream away from its reader."""
    if request.method != "GET":
        raise HTTPException(405, headers={"Allow": "GET"})
