"""A protocol that rbee does not have: jobs that start before their stream is asked for, with events of their own.

POST /toy/jobs {"prompt": [ids], "max_tokens": n} -> {"job": name}
GET /toy/jobs/{job} -> started, word*, then over or failed
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee.messages import FinishReason
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.streams.exchange import Backend, ParkedGeneration
from rbee.server.streams.generation import Generation
from rbee.transport import FrameTemplate, LastFrames, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.types import Scope

    from rbee.server.streams.outcome import Outcome
    from rbee.server.streams.pieces import CollectedChoice, Piece

_ENDS = {FinishReason.STOP: b"stopped", FinishReason.LENGTH: b"full", FinishReason.DEADLINE: b"late"}
_WORD = b'event: word\ndata: {"word":%b,"number":%b}\n\n'
_OVER = b'event: over\ndata: {"why":"%b","words":%b}\n\n'


class ToyDialect:
    """Events with names; a last piece and the end are two events."""

    stream_headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", b"text/event-stream")]
    answer_headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
    keep_alive = b""

    def __init__(self, job: str) -> None:
        self.answer_id = job

    def begin(self) -> bytes:
        return b"event: started\ndata: %b\n\n" % self.answer_id.encode()

    def piece(self, choice: int, piece: Piece, number: int) -> bytes:  # noqa: ARG002
        return _WORD % (json.dumps(piece.text, ensure_ascii=False).encode(), b"%d" % number)

    def end(self, choice: int, piece: Piece, number: int, reason: int) -> bytes:
        word = self.piece(choice, piece, number) if piece.text else b""
        return word + _OVER % (_ENDS[FinishReason(reason)], b"%d" % piece.num_tokens)

    def finish(self, outcome: Outcome) -> bytes:  # noqa: ARG002
        return b""

    def error(self, refusal: Refusal, number: int, last: Piece | None = None) -> bytes:  # noqa: ARG002
        return b"event: failed\ndata: %b\n\n" % json.dumps(refusal.message).encode()

    def answer(self, choices: Sequence[CollectedChoice], outcome: Outcome) -> bytes:  # noqa: ARG002
        return json.dumps({"words": choices[0].text}).encode()

    def template(self) -> FrameTemplate:
        word = _WORD % (Slot.TEXT, Slot.INDEX)
        ends = [_OVER % (why, Slot.NUM_TOKENS) for why in _ENDS.values()]
        stop, length, late = (LastFrames(word + end, word + end, end, end) for end in ends)
        return FrameTemplate(word, word, stop, length, late, b"")


class ToyApi:
    """The routes of the toy protocol."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.jobs: dict[str, ParkedGeneration] = {}

    def routes(self) -> list[Route]:
        return [Route("/toy/jobs", self.start, methods=["POST"]), Route("/toy/jobs/{job}", self.stream)]

    async def start(self, request: Request) -> Response:
        asked, now = await request.json(), time.monotonic_ns()
        sampling, stops = SamplingParams(max_tokens=asked["max_tokens"]), asked.get("stops", [])
        generation = Generation(received_ns=now, prompt=asked["prompt"], sampling=sampling, stops=stops)
        job = f"toy-{now}"
        self.jobs[job] = ParkedGeneration(self._backend, generation, ToyDialect(job))
        return JSONResponse({"job": job})

    async def stream(self, request: Request) -> Response:
        if (job := self.jobs.pop(request.path_params["job"], None)) is None:
            raise Refusal(RefusalKind.GONE, "No such job.")
        return job.claim()


def toy_refusal(refusal: Refusal, scope: Scope) -> Response:  # noqa: ARG001
    """A refusal in the protocol's own words and with its own status."""
    return Response(f"refused: {refusal.message}", 418, media_type="text/plain")
