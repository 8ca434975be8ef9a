"""The jobs of a server, from their POST until they are forgotten.

Owns which jobs there are, whose they are, that each is read once, and how long one may wait for its reader. Does not
know requests, nor what a job generates.
"""

from __future__ import annotations

import logging
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

from starlette.responses import Response

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.protocols.jobs.refusals import cancelled

if TYPE_CHECKING:
    from collections.abc import Hashable

    from starlette.types import Receive, Scope, Send

    from rbee.server.protocols.jobs.dialect import JobDialect
    from rbee.server.streams.exchange import ParkedGeneration
    from rbee.server.streams.live import ReplyWatch

_log = logging.getLogger(__name__)

_MAX_SHOWN = 128  # characters of an id that is unknown


class _State(Enum):
    WAITING = auto()  # for its reader
    READ = auto()  # its stream has begun
    CANCELLED = auto()  # before its stream began
    ENDED = auto()


class Job:
    """A job whose id is `dialect.answer_id`."""

    __slots__ = ("dialect", "generation", "owner", "since", "state")

    def __init__(self, owner: Hashable, generation: ParkedGeneration, dialect: JobDialect) -> None:
        self.owner = owner
        self.generation: ParkedGeneration | None = generation  # until it has ended
        self.dialect = dialect
        self.since = time.monotonic()
        self.state = _State.WAITING


class Jobs:
    """All jobs, each its owner's.

    A job without a reader is cancelled after `ttl` seconds and forgotten. Of the jobs that have ended the last
    `max_ended` are remembered, so that a second reader gets the true answer.

    Args:
        watch: checks this object while a job waits for its reader.
        ttl: in seconds.
        max_ended: a number of jobs.
    """

    def __init__(self, watch: ReplyWatch, *, ttl: float, max_ended: int) -> None:
        self._watch = watch
        self._ttl = ttl
        self._max_ended = max_ended
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, Job] = {}  # longest first
        self._ended: dict[str, None] = {}  # longest first

    def add(self, job: Job) -> None:
        """From now on its time runs."""
        self._jobs[job.dialect.answer_id] = self._waiting[job.dialect.answer_id] = job
        self._watch.add(self)

    async def claim(self, owner: Hashable, job_id: str) -> Response:
        """The response that streams a job.

        Raises:
            Refusal: the owner has no such job, its stream has been asked for before, or its deadline passed before its
                first token.
        """
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise self._unknown(job_id)
        if job.state in (_State.READ, _State.ENDED):
            message = f"The stream of job {job_id} has been asked for before; a job is read once. Send a new one."
            raise Refusal(RefusalKind.CONFLICT, message, code="job_taken")
        if job.state is _State.CANCELLED:
            job.state = _State.ENDED
            return _CancelledStream(job.dialect)
        job.state = _State.READ
        self._stop_waiting(job)
        generation = job.generation
        assert generation is not None, "it has not ended"
        try:
            await generation.check_deadline()
            return _JobStream(self, job, generation.claim())
        except BaseException:
            generation.cancel()
            self.end(job)
            raise

    def cancel(self, owner: Hashable, job_id: str) -> None:
        """Cancel a job. Harmless if it has ended, is unknown, or is another owner's."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner or job.generation is None:
            return
        job.generation.end(cancelled())
        if job.state is _State.WAITING:  # else the end of its response is the job's
            self._stop_waiting(job)
            self.end(job, _State.CANCELLED)

    def end(self, job: Job, state: _State = _State.ENDED) -> None:
        """Nothing is left to be read, or the end of a cancelled job only."""
        job.state, job.generation = state, None
        self._ended[job.dialect.answer_id] = None
        if len(self._ended) > self._max_ended:
            oldest = next(iter(self._ended))
            del self._ended[oldest], self._jobs[oldest]

    def check(self, now: float, slow_reader_timeout: float) -> None:  # noqa: ARG002 - as the watch calls it
        """Forget the jobs that have waited for too long. `now` is time.monotonic()."""
        while self._waiting:
            job = next(iter(self._waiting.values()))
            if now - job.since < self._ttl:
                break
            assert job.generation is not None, "it has not ended"
            job_id = job.dialect.answer_id
            _log.info("nothing asked for job %s within %g s (--job-ttl); it is cancelled", job_id, self._ttl)
            job.generation.end(cancelled())
            self._stop_waiting(job)
            del self._jobs[job_id]

    def _stop_waiting(self, job: Job) -> None:
        del self._waiting[job.dialect.answer_id]
        if not self._waiting:
            self._watch.discard(self)

    def _unknown(self, job_id: str) -> Refusal:
        return Refusal(
            RefusalKind.NOT_FOUND,
            f"There is no job {job_id[:_MAX_SHOWN]!r}: it is unknown here, or nothing asked for its stream within "
            f"{self._ttl:g} s (--job-ttl). Send a new one.",
            code="job_not_found",
        )


class _JobStream(Response):
    """The stream of a job, which ends with it."""

    def __init__(self, jobs: Jobs, job: Job, stream: Response) -> None:
        self.background = None
        self._jobs = jobs
        self._job = job
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._stream(scope, receive, send)
        finally:
            self._jobs.end(self._job)


class _CancelledStream(Response):
    """The stream of a job that was cancelled before it was asked for."""

    def __init__(self, dialect: JobDialect) -> None:
        super().__init__(dialect.begin() + dialect.error(cancelled()))
        self.raw_headers.extend(dialect.stream_headers)
