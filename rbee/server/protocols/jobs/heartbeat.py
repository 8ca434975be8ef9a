"""Heartbeats of this worker: what it is and how it is, posted to its queen twice a minute.

Owns the record, its rhythm, and the thread that sends it: whatever the queen answers, and when, delays nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import queue
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from rbee import __version__
from rbee.server.protocols.jobs.dialect import timestamp
from rbee.transport import ServerState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rbee.server.link.supervisor import Supervisor

_log = logging.getLogger(__name__)

INTERVAL = 30.0  # seconds between two heartbeats; queens miss a worker after three
_LOOK = 0.5  # seconds between two looks at the state, whose change is told at once where it decides on new requests
_PATIENCE = 5.0  # seconds that a queen may take to answer
_LAST_PATIENCE = 1.0  # seconds that the end of the server waits for the last heartbeat to be sent
_STARTING, _STOPPED = "starting", "stopped"


@contextlib.asynccontextmanager
async def heartbeats(
    url: str, supervisor: Supervisor, model: str, port: int, *, interval: float = INTERVAL
) -> AsyncIterator[None]:
    """Send heartbeats to `url` inside the block, and at its end one more with the status "stopped".

    One is sent at once, then every `interval` seconds, and when the status becomes or ceases to be "starting".
    """
    sender = _Sender(url)

    def record(status: str) -> bytes:
        worker = {
            "id": f"{socket.gethostname()}-{port}",
            "model_id": model,
            "device": supervisor.device,
            "port": port,
            "status": status,
            "implementation": "rbee",
            "version": __version__,
        }
        return msgspec.json.encode({"worker": worker, "timestamp": timestamp()})

    beating = asyncio.create_task(_beat(supervisor, lambda status: sender.put(record(status)), interval))
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.to_thread(sender.close, record(_STOPPED))


def status_of(supervisor: Supervisor) -> str:
    """How the worker is, in the words of its queen. A busy one takes a job and lets it wait."""
    if supervisor.leaving:
        return _STOPPED
    match supervisor.state:
        case ServerState.READY:
            return "busy" if supervisor.client.rings_in_use >= supervisor.max_num_seqs else "ready"
        case ServerState.STARTING | ServerState.LOADING:
            return _STARTING
        case _:
            return _STARTING if supervisor.restarting else _STOPPED


async def _beat(supervisor: Supervisor, send: Callable[[str], None], interval: float) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        told, sent = status_of(supervisor), clock()
        send(told)
        while (left := sent + interval - clock()) > 0:
            await asyncio.sleep(min(_LOOK, left))
            if (status_of(supervisor) == _STARTING) != (told == _STARTING):
                break


class _Sender:
    """Sends records from a thread of its own, in order. The process does not wait for the thread when it exits."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._records: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="rbee-heartbeat", daemon=True)
        self._thread.start()

    def put(self, record: bytes) -> None:
        """Send it soon; drop it while an older one waits for its turn, because it would come late."""
        if self._records.empty():
            self._records.put(record)

    def close(self, last: bytes) -> None:
        """Send a last one, within the patience that the end of a server has."""
        self._records.put(last)
        self._records.put(None)
        self._thread.join(_LAST_PATIENCE)

    def _run(self) -> None:
        failing = False
        while (record := self._records.get()) is not None:
            try:
                self._post(record)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not failing:
                    _log.warning("heartbeats to %s (--heartbeat-url) fail: %s", self._url, error)
                failing = True
            else:
                if failing:
                    _log.warning("heartbeats to %s arrive again", self._url)
                failing = False

    def _post(self, record: bytes) -> None:
        url = urlsplit(self._url)
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        with contextlib.closing(kind(url.hostname or "", url.port, timeout=_PATIENCE)) as connection:
            target = url._replace(scheme="", netloc="", fragment="").geturl() or "/"
            connection.request("POST", target, record, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if not 200 <= answer.status < 300:
                raise OSError(f"the answer has the status {answer.status}")
