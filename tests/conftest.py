"""Fixtures: the event loop of async tests, and running servers (the real command line, real processes and sockets)."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import certifi
import psutil
import pytest
from hypothesis import HealthCheck, settings

from rbee.config import DEFAULT_MODEL
from rbee.models import prepare
from rbee.models.progress import ConsoleProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rbee.models import ModelFolder

_PATIENCE = 120.0  # seconds after which a server that does not do what a test waits for is killed, and the test fails

# A busy machine is no failure: examples have no time limit. `make test` takes the same ones every time, so that it says
# the same of the same code; `make test-properties` looks for others.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")

_SLOW_FIXTURES = {"launch", "start_server", "synthetic_server", "default_model", "default_server", "vocabularies"}


def pytest_configure() -> None:
    """Take Ctrl-C as in a terminal: a run in the background ignores SIGINT, and every process started would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts servers or needs a downloaded model; other slow tests carry the mark themselves."""
    for item in items:
        if isinstance(item, pytest.Function) and not _SLOW_FIXTURES.isdisjoint(item.fixturenames):
            item.add_marker("slow")


@dataclass
class Server:
    """A running `rbee serve`. As a context manager, it is gone at the end of the block, however it was treated."""

    process: subprocess.Popen[str]
    log: Path
    url: str = ""

    @property
    def pid(self) -> int:
        """Of the server process."""
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.partition("://")[2].rpartition(":")
        return host, int(port)

    @property
    def engine(self) -> psutil.Process:
        """The engine process."""
        [engine] = [
            child for child in psutil.Process(self.pid).children() if "rbee.engine" in " ".join(child.cmdline())
        ]
        return engine

    @contextlib.contextmanager
    def stopped_engine(self) -> Iterator[None]:
        """Inside the block the engine process makes no step: nothing that waits for it can happen."""
        engine = self.engine
        engine.suspend()
        try:
            while engine.status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.resume()

    def wait_for(self, word: str) -> str:
        """The next line on stdout that begins with `rbee: <word>`; fails when the server ends first, or hangs."""
        with _deadline(self.process):
            for line in self.process.stdout:
                if line.startswith(f"rbee: {word}"):
                    return line.strip()
        pytest.fail(f"the server ended before it said {word!r}; its log:\n{self.log.read_text()}")

    def wait_for_log(self, words: str) -> None:
        """Return when the log has these words; fails when the server ends first, or hangs."""
        with _deadline(self.process):
            while words not in self.log.read_text():
                if self.process.poll() is not None:
                    pytest.fail(f"the server ended before it logged {words!r}; its log:\n{self.log.read_text()}")
                time.sleep(0.01)

    def wait(self) -> int:
        """The exit code, once it has ended by itself."""
        with _deadline(self.process):
            return self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@contextlib.contextmanager
def _deadline(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the process if the block takes too long, so that a hang fails the test instead of the whole run."""
    timer = threading.Timer(_PATIENCE, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _launch(folder: Path, command: list[str], *, until: str | None) -> Server:
    """Start `command` and wait until it has said `until` ("listening", "ready"; None waits for nothing)."""
    handle, log = tempfile.mkstemp(suffix=".log", dir=folder)
    with os.fdopen(handle, "wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    server = Server(process, Path(log))
    if until is not None:
        try:
            server.url = server.wait_for("listening").rpartition(" ")[2]
            if until != "listening":
                server.wait_for(until)
        except BaseException:
            server.__exit__()
            raise
    return server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of async tests (`pytestmark = pytest.mark.anyio`): asyncio's own."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def authorities_are_read_once() -> Iterator[None]:
    """Each client of httpx reads the system's authorities, if only for http://: 20 ms of a processor, 1,000 times."""
    make = ssl.create_default_context
    of_the_system = functools.cache(lambda cafile: make(cafile=cafile))
    files = {certifi.where(), os.environ.get("SSL_CERT_FILE")}

    def context(*args: Any, **options: Any) -> ssl.SSLContext:
        if args or options.keys() != {"cafile"} or options["cafile"] not in files:
            return make(*args, **options)
        return of_the_system(options["cafile"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", context)
        yield


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`launch(command, until="ready")`: a command that serves, for what `start_server` cannot do."""
    folder = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as servers:
        yield lambda command, until="ready": servers.enter_context(_launch(folder, command, until=until))


@pytest.fixture(scope="session")
def start_server(launch: Callable[..., Server]) -> Callable[..., Server]:
    """`start_server(*options, until="ready")`: `rbee serve --port 0` with these options.

    It ends with the session, or with the block of `with start_server(...) as server`.
    """

    def start(*options: str, until: str | None = "ready") -> Server:
        return launch([sys.executable, "-m", "rbee.cli", "serve", "--port", "0", *options], until=until)

    return start


@pytest.fixture(scope="session")
def synthetic_server(start_server: Callable[..., Server]) -> Server:
    """One server with the synthetic model at 1 ms steps, for all tests that leave it as they found it."""
    return start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--max-requests", "128")


@pytest.fixture(scope="session")
def default_model() -> ModelFolder:
    """The default model's folder; `make test` has fetched it before."""
    return prepare(DEFAULT_MODEL, progress=ConsoleProgress())


@pytest.fixture(scope="session")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the default model, for all tests that leave it as they found it."""
    with _launch(
        tmp_path_factory.mktemp("default"),
        [sys.executable, "-m", "rbee.cli", "serve", "--port", "0", "--model", DEFAULT_MODEL],
        until="ready",
    ) as server:
        yield server
