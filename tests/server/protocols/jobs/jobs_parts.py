"""A client of jobs that reads line by line, and what it asks for."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from tests.server.protocols.jobs.events_parts import event_of
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Server

JOBS = "/v1/jobs"
INFERENCE = "/v1/inference"
SHORT = {"prompt": "job", "max_tokens": 12}
LONG = {"prompt": "long", "max_tokens": 2048}

Answer: TypeAlias = tuple[int, dict[str, str], bytes]  # status, headers in small letters, body


class JobClient:
    """A client of one server, on a connection of its own for each request, as the protocol's old clients are."""

    def __init__(self, server: Server, key: str = "") -> None:
        self._address = server.address
        self._headers = {"x-api-key": key} if key else {}

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """What the server answers."""
        with self._asked(method, path, body, headers) as answer:
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def start(self, body: dict[str, Any], path: str = JOBS, headers: dict[str, str] | None = None) -> str:
        """Start a job; its id."""
        status, _, answer = self.ask("POST", path, body, headers)
        assert status == 200, answer
        started = json.loads(answer)
        assert started == {"job_id": started["job_id"], "sse_url": f"{JOBS}/{started['job_id']}/stream"}
        job_id: str = started["job_id"]
        return job_id

    @contextlib.contextmanager
    def stream(self, job_id: str, path: str = JOBS) -> Iterator[Iterator[Any]]:
        """The events of a job, one by one; the connection ends with the block."""
        with self._asked("GET", f"{path}/{job_id}/stream") as answer:
            assert answer.status == 200, answer.read()
            yield (event_of(line) for line in answer if line.strip())

    def read(self, job_id: str, path: str = JOBS) -> list[Any]:
        """All events of a job."""
        with self.stream(job_id, path) as events:
            return list(events)

    def run(self, body: dict[str, Any]) -> list[Any]:
        """All events of a new job."""
        return self.read(self.start(body))

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        with contextlib.closing(http.client.HTTPConnection(*self._address, timeout=PATIENCE)) as connection:
            sent = self._headers | (headers or {})
            if body is not None:
                sent["Content-Type"] = "application/json"
                body = body if isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, body, sent)
            yield connection.getresponse()


def refusal_of(answer: Answer) -> tuple[int, str, bool]:
    """Status, code and whether it may be tried again, of a refusal in the protocol's envelope."""
    status, headers, content = answer
    envelope = json.loads(content)
    assert headers["content-type"] == "application/json"
    assert list(envelope) == ["code", "message", "retriable"]
    return status, envelope["code"], envelope["retriable"]
