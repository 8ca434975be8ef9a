"""Which jobs a server remembers, for how long, and what becomes of the others; with a clock of the tests' own."""

from __future__ import annotations

import time
from typing import Any

import pytest
from starlette.responses import Response

from rbee.server.errors import Refusal, RefusalKind, deadline_passed
from rbee.server.protocols.jobs.dialect import JobDialect
from rbee.server.protocols.jobs.registry import Job, Jobs
from tests.fakes import RecordingWatch

pytestmark = pytest.mark.anyio

TTL = 60.0


class Generation:
    """A ParkedGeneration without an engine: keeps how it was ended."""

    def __init__(self) -> None:
        self.ends: list[str | None] = []
        self.late: Refusal | None = None

    def end(self, refusal: Refusal) -> None:
        """Note it."""
        self.ends.append(refusal.code)

    def cancel(self) -> None:
        """Note it."""
        self.ends.append(None)

    async def check_deadline(self) -> None:
        """It has passed, if the test says so."""
        if self.late is not None:
            raise self.late

    def claim(self) -> Response:
        """An answer that has no end."""
        return Response()


class Registry:
    """Jobs under test, and what watches them."""

    def __init__(self, max_ended: int = 8) -> None:
        self.watch = RecordingWatch()
        watch: Any = self.watch
        self.jobs = Jobs(watch, ttl=TTL, max_ended=max_ended)

    def start(self) -> tuple[str, Generation]:
        """A new job of owner 1."""
        generation: Any = Generation()
        job = Job(1, generation, JobDialect("m"))
        self.jobs.add(job)
        return job.dialect.answer_id, generation

    async def kind_of_claim(self, job_id: str) -> RefusalKind | None:
        """Why there is no stream for owner 1; None: there is."""
        try:
            await self.jobs.claim(1, job_id)
        except Refusal as refusal:
            return refusal.kind
        return None


async def test_jobs_are_watched_while_one_waits():
    """A server without such jobs has no timer for them."""
    registry = Registry()
    assert not registry.watch.open
    first, _ = registry.start()
    second, _ = registry.start()
    assert registry.watch.open == {registry.jobs}
    await registry.jobs.claim(1, first)
    assert registry.watch.open == {registry.jobs}
    registry.jobs.cancel(1, second)
    assert not registry.watch.open


async def test_jobs_wait_for_their_time_and_no_longer():
    """Each from its own POST on; what has a reader is left alone."""
    registry = Registry()
    early, early_generation = registry.start()
    read, read_generation = registry.start()
    await registry.jobs.claim(1, read)
    between = time.monotonic()
    late, late_generation = registry.start()
    registry.jobs.check(between + TTL - 1, 0)
    assert early_generation.ends == []
    registry.jobs.check(between + TTL, 0)
    assert (early_generation.ends, read_generation.ends, late_generation.ends) == (["cancelled"], [], [])
    assert registry.watch.open == {registry.jobs}
    assert await registry.kind_of_claim(early) is RefusalKind.NOT_FOUND
    assert await registry.kind_of_claim(late) is None


async def test_only_the_last_ended_jobs_are_remembered():
    """An older one is unknown. Cancels of both do no harm."""
    registry = Registry(max_ended=2)
    ids = [registry.start()[0] for _ in range(4)]
    for job_id in ids[:3]:
        registry.jobs.cancel(1, job_id)
    assert await registry.kind_of_claim(ids[0]) is RefusalKind.NOT_FOUND
    assert await registry.kind_of_claim(ids[1]) is None
    assert await registry.kind_of_claim(ids[1]) is RefusalKind.CONFLICT
    for job_id in ids:
        registry.jobs.cancel(1, job_id)


async def test_others_see_nothing_of_a_job():
    """Not even a cancel of theirs is noticed."""
    registry = Registry()
    job_id, generation = registry.start()
    registry.jobs.cancel(None, job_id)
    registry.jobs.cancel(2, job_id)
    with pytest.raises(Refusal) as caught:
        await registry.jobs.claim(2, job_id)
    assert caught.value.kind is RefusalKind.NOT_FOUND
    assert generation.ends == []
    assert await registry.kind_of_claim(job_id) is None


async def test_job_that_came_too_late_is_over():
    """It is cancelled, and nothing can be read of it."""
    registry = Registry()
    job_id, generation = registry.start()
    generation.late = deadline_passed()
    assert await registry.kind_of_claim(job_id) is RefusalKind.TIMED_OUT
    assert generation.ends == [None]
    assert await registry.kind_of_claim(job_id) is RefusalKind.CONFLICT
    assert not registry.watch.open
