"""How jobs end that do not end by themselves: cancels, failures, deadlines; and whose they are."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
import pytest

from rbee.messages import FinishReason
from rbee.server.text import served_model
from tests.fakes import RecordingEngine
from tests.server.protocols.jobs.events_parts import CANCELLED, DONE, WHOLE, event_of, kinds, text_of
from tests.server.protocols.jobs.jobs_parts import INFERENCE, JOBS, LONG, SHORT, JobClient, refusal_of
from tests.server.protocols.parameters_parts import ready
from tests.server.server_parts import expected, serving, until_full, until_rings

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOW = ["--model", "synthetic", "--synthetic-step-ms", "20"]

# ---- cancels ---------------------------------------------------------------------------------------------------------

CANCELS = {
    "DELETE /v1/jobs": lambda client, job_id: client.ask("DELETE", f"{JOBS}/{job_id}"),
    "DELETE /v1/inference": lambda client, job_id: client.ask("DELETE", f"{INFERENCE}/{job_id}"),
    "POST /v1/cancel": lambda client, job_id: client.ask("POST", "/v1/cancel", {"job_id": job_id}),
}
STATUSES = {"DELETE /v1/jobs": 200, "DELETE /v1/inference": 204, "POST /v1/cancel": 202}


def cancel(client: JobClient, way: str, job_id: str) -> None:
    """Cancel a job twice: the second time is as good as the first."""
    for _ in range(2):
        status, _, content = CANCELS[way](client, job_id)
        assert status == STATUSES[way]
        assert content == b"" if status == 204 else json.loads(content) == {"job_id": job_id, "status": "cancelled"}


@pytest.mark.parametrize("way", CANCELS)
def test_cancel_before_the_stream(slow_server, way):
    """The stream, asked for later, says so, once. The ring is free without it."""
    client = JobClient(slow_server)
    job_id = client.start(LONG)
    cancel(client, way, job_id)
    asyncio.run(until_rings(slow_server, 0))
    started, *rest = client.read(job_id)
    assert (started["type"], started["job_id"], rest) == ("started", job_id, [CANCELLED, DONE])
    cancel(client, way, job_id)
    assert refusal_of(client.ask("GET", f"{JOBS}/{job_id}/stream")) == (409, "JOB_TAKEN", False)


@pytest.mark.parametrize("more", [{}, {"stop": ["\x00"]}], ids=["natively", "through Python"])
@pytest.mark.parametrize("way", CANCELS)
def test_cancel_during_the_stream(slow_server, way, more):
    """It ends with CANCELLED and [DONE] behind the tokens that came, and its ring is free."""
    client = JobClient(slow_server)
    job_id = client.start(LONG | more)
    with client.stream(job_id) as events:
        first = [next(events), next(events)]
        cancel(client, way, job_id)
        whole = first + list(events)
    assert kinds(whole) == ["started", "token", "error", DONE]
    assert whole[-2] == CANCELLED
    assert expected("long", 2048).startswith(text_of(whole))
    asyncio.run(until_rings(slow_server, 0))


@pytest.mark.parametrize("way", CANCELS)
def test_cancel_of_what_does_not_run(client, way):
    """A job that has ended, and one that never was: nothing is left to be cancelled, which is what was wanted."""
    job_id = client.start(SHORT)
    assert kinds(client.read(job_id)) == WHOLE
    cancel(client, way, job_id)
    cancel(client, way, "job-1")


def test_cancel_in_the_queue(start_server):
    """A job that waits for its turn ends at once."""
    with start_server(*SLOW, "--max-num-seqs", "1") as server:
        client = JobClient(server)
        running = client.start(LONG)
        with client.stream(running) as first:
            assert [next(first)["type"] for _ in range(2)] == ["started", "token"]
            waiting = client.start(LONG)
            with client.stream(waiting) as second:
                assert next(second)["type"] == "started"
                cancel(client, "DELETE /v1/jobs", waiting)
                assert list(second) == [CANCELLED, DONE]
            assert next(first)["type"] == "token"


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"stop": ["\x00"]}], ids=["natively", "through Python"])
def test_engine_that_dies_in_mid_job(start_server, more):
    """Behind the tokens comes an error that may be tried again, then [DONE]."""
    with start_server(*SLOW) as server:
        client = JobClient(server)
        with client.stream(client.start(LONG | more)) as events:
            first = [next(events), next(events)]
            server.engine.kill()
            whole = first + list(events)
        assert kinds(whole) == ["started", "token", "error", DONE]
        assert (whole[-2]["code"], whole[-2]["retriable"]) == ("INFERENCE_FAILED", True)
        assert expected("long", 2048).startswith(text_of(whole))


def test_engine_that_dies_before_the_stream(start_server):
    """The tokens that it committed come first. New jobs get 503 until the next engine is ready."""
    with start_server(*SLOW, "--ring-capacity", "4") as server:
        client = JobClient(server)
        job_id = client.start(LONG)
        asyncio.run(until_full(server))
        server.engine.kill()
        server.wait_for_log("the engine process died")
        events = client.read(job_id)
        assert kinds(events) == ["started", "token", "error", DONE]
        assert (events[-2]["code"], events[-2]["retriable"]) == ("INFERENCE_FAILED", True)
        assert expected("long", 4) == text_of(events)
        server.wait_for_log("the engine is ready again")
        assert text_of(client.run(SHORT)) == expected("job", 12)


def test_job_without_a_reader_while_the_server_stops(start_server):
    """It was accepted: its stream can still be asked for, and the server ends behind it."""
    with start_server(*SLOW) as server:
        client = JobClient(server)
        job_id = client.start({"prompt": "last", "max_tokens": 20})
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping; open requests have 30 s to finish")
        assert refusal_of(client.ask("POST", JOBS, SHORT)) == (503, "ENGINE_DRAINING", True)
        events = client.read(job_id)
        assert (kinds(events), text_of(events)) == (WHOLE, expected("last", 20))
        assert server.wait() == 0


# ---- deadlines -------------------------------------------------------------------------------------------------------


def deadline_in(seconds: float) -> dict[str, str]:
    """The header of a deadline."""
    return {"X-Request-Deadline": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


def soon() -> Iterator[dict[str, str]]:
    """Deadlines that are further and further away, for a server that is too slow to take a job before the nearest."""
    return (deadline_in(0.2 * 2**number) for number in itertools.count())


def wait_until_past(header: dict[str, str]) -> None:
    """Return when a deadline has passed."""
    while datetime.now(UTC) <= datetime.fromisoformat(header["X-Request-Deadline"]):
        time.sleep(0.01)


def test_deadline_that_has_passed(client):
    """The job is not begun."""
    assert refusal_of(client.ask("POST", JOBS, SHORT, deadline_in(-1))) == (408, "REQUEST_TIMEOUT", True)


def test_deadline_that_passes_in_the_queue(start_server):
    """A stream that is asked for after it is refused with 408; the job is over then."""
    with start_server(*SLOW, "--max-num-seqs", "1") as server:
        client = JobClient(server)
        with client.stream(client.start(LONG)) as running:
            assert [next(running)["type"] for _ in range(2)] == ["started", "token"]
            for header in soon():
                status, _, started = client.ask("POST", JOBS, SHORT, header)
                if status == 200:
                    break
            wait_until_past(header)
            job_id = json.loads(started)["job_id"]
            assert refusal_of(client.ask("GET", f"{JOBS}/{job_id}/stream")) == (408, "REQUEST_TIMEOUT", True)
            assert refusal_of(client.ask("GET", f"{JOBS}/{job_id}/stream")) == (409, "JOB_TAKEN", False)
            assert next(running)["type"] == "token"


@pytest.mark.anyio
@pytest.mark.parametrize("more", [{}, {"stop": ["\x00"]}], ids=["natively", "through Python"])
@pytest.mark.parametrize("late", [False, True], ids=["open stream", "stream asked for after it"])
@pytest.mark.parametrize("token_id", [None, ord("!")], ids=["no token", "a token"])
async def test_deadline_of_a_stream(token_id, late, more):
    """An open stream ends with TIMEOUT, behind the tokens that came in time, which a late reader gets too."""
    engine = RecordingEngine(ready(max_model_len=8192), token_id, FinishReason.DEADLINE)
    model = served_model.load_synthetic("synthetic")
    async with serving(engine, model) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        for header in soon() if late else [deadline_in(3600)]:
            started = await client.post(JOBS, json=SHORT | more, headers=header)
            if started.status_code == 200:
                break
        if late:
            wait_until_past(header)
        stream = await client.get(started.json()["sse_url"])
    if late and token_id is None:
        assert (stream.status_code, stream.json()["code"]) == (408, "REQUEST_TIMEOUT")
        return
    events = [event_of(line.encode()) for line in stream.text.splitlines() if line]
    assert kinds(events) == ["started", *["token"] * (token_id is not None), "error", DONE]
    assert text_of(events) == "!" * (token_id is not None)
    assert (events[-2]["code"], events[-2]["retriable"]) == ("TIMEOUT", True)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_jobs_are_each_keys_own(start_server):
    """Another key's holder can neither read nor cancel a job, nor learn that there is one."""
    with start_server(*SLOW, "--api-key", "a", "--api-key", "b") as server:
        owner, other = JobClient(server, "a"), JobClient(server, "b")
        assert refusal_of(JobClient(server).ask("POST", JOBS, SHORT)) == (401, "INVALID_API_KEY", False)
        job_id = owner.start({"prompt": "mine", "max_tokens": 10})
        assert refusal_of(other.ask("GET", f"{JOBS}/{job_id}/stream")) == (404, "JOB_NOT_FOUND", False)
        for way in CANCELS:
            cancel(other, way, job_id)
        assert text_of(owner.read(job_id)) == expected("mine", 10)
        assert refusal_of(other.ask("GET", f"{JOBS}/{job_id}/stream")) == (404, "JOB_NOT_FOUND", False)
