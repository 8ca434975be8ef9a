"""The server process: listens, starts the engine, serves until told to stop, leaves nothing behind.

Owns the order of things at start and at the end, signals, and the exit code. Does not know routes or tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import resource
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import uvicorn
import uvloop

from rbee.errors import ConfigError, EngineUnavailableError
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http.app import build_app
from rbee.server.http.protocol import StreamProtocol
from rbee.server.link.supervisor import Supervisor
from rbee.server.protocols.openai.routes import OpenAiApi
from rbee.server.protocols.operations import OperationsApi
from rbee.server.protocols.resume import Resuming
from rbee.server.streams.exchange import Backend
from rbee.server.streams.live import ReplyWatch
from rbee.server.streams.resumption import ResumableStreams
from rbee.server.text import served_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.applications import Starlette

    from rbee.config import Config, ServerConfig
    from rbee.models import ModelFolder
    from rbee.server.text.served_model import ServedModel

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_SPARE_DESCRIPTORS = 64  # beside one for each request: files, pipes, the engine's channels, refused connections
_SEND_BUFFER = 128 * 1024  # bytes the kernel holds for one slow client (it books twice that); a token's frame has 250
_ENGINE_PATIENCE = 5.0  # seconds the engine may take to stop
_RESPONSE_PATIENCE = 2  # seconds the last responses may take to leave, once nothing is open any more
_SLOWEST_LOOK, _FASTEST_LOOK = 5.0, 0.05  # seconds between two looks at all streams


def run(config: Config, model: ModelFolder | None) -> int:
    """Serve `model` (None: the synthetic one) until SIGTERM or SIGINT; the exit code.

    Prints `rbee: listening on URL` when the port is open and `rbee: ready (...)` when requests are taken.

    Returns:
        0 after a shutdown on request, 2 if the engine could not start (its reason has been logged).

    Raises:
        RbeeError: an option or the model makes it impossible to serve.
    """
    started = time.monotonic()
    check_options(config.server)
    allow_descriptors(config.server.max_requests)
    with listen(config.server.host, config.server.port) as sock:
        _say(f"listening on {_url(sock)}")
        name = config.server.served_model_name
        if model is None:
            served = served_model.load_synthetic(name or "synthetic")
        else:
            served = served_model.load(name or model.name, model.path)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_serve(config, served, sock, started))
        finally:
            gc.unfreeze()  # the interpreter's last collection frees what was frozen when the engine was ready


async def _serve(config: Config, model: ServedModel, sock: socket.socket, started: float) -> int:
    options = config.server
    supervisor = Supervisor(
        config.engine,
        max_requests=options.max_requests,
        ring_capacity=options.ring_capacity,
        max_queued_requests=options.max_queued_requests,
        busy_poll=options.busy_poll,
        debug=config.debug,
    )
    slow_reader_timeout = config.engine.slow_reader_timeout
    watch = ReplyWatch(_look_period(min(slow_reader_timeout, options.resume_timeout)), slow_reader_timeout)
    resuming = Resuming(
        ResumableStreams(watch, resume_timeout=options.resume_timeout, max_ended=options.max_requests),
        watch,
        replay_window=options.replay_window,
    )
    openai = OpenAiApi(
        Backend(supervisor, model.codec, watch),
        model,
        resuming,
        max_body_bytes=options.max_body_mib * 2**20,
        lenient=options.lenient,
    )
    operations = OperationsApi(supervisor, model.name)
    http = _http_server(
        build_app([*openai.routes(), *resuming.routes(), *operations.routes()], options.api_key), debug=config.debug
    )
    with _StopRequests() as stop:
        await supervisor.start()
        serving = asyncio.create_task(http.serve(sockets=[sock]))
        try:
            return await _until_stopped(supervisor, stop, model.name, options.drain_timeout, started)
        finally:
            supervisor.refuse_new()
            supervisor.client.fail_all(
                Refusal(
                    RefusalKind.UNAVAILABLE,
                    "The server is shutting down; this answer is not complete.",
                    code="server_shutdown",
                )
            )
            http.should_exit = True
            stop.on_second(http.leave_now)
            stop.on_second(supervisor.kill)
            await serving
            await supervisor.stop(_ENGINE_PATIENCE)


async def _until_stopped(
    supervisor: Supervisor, stop: _StopRequests, model: str, drain_timeout: float, started: float
) -> int:
    """Wait for the engine, then for a signal, then for the open streams; the exit code."""
    first = asyncio.create_task(stop.first.wait())
    waited_for: set[asyncio.Future[Any]] = {supervisor.settled, first}
    await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
    if supervisor.settled.done():
        try:
            engine = supervisor.settled.result()
        except EngineUnavailableError as error:
            first.cancel()
            _log.error("%s", error)
            return 2
        gc.collect()
        # What is alive now stays alive: no collection in the token path has to look at it again. The thresholds stay as
        # they are: without what was frozen, and with requests that leave no cycles of ours, a collection takes some
        # 0.15 ms (bench_delivery's column `gc`); higher ones make for rarer and longer pauses.
        gc.freeze()
        _say(f"ready (model {model}, runner {engine.runner}, {time.monotonic() - started:.1f} s)")
    await first
    supervisor.refuse_new()
    _log.info("stopping; open requests have %.0f s to finish", drain_timeout)
    idle = asyncio.create_task(supervisor.client.wait_idle())
    second = asyncio.create_task(stop.second.wait())
    await asyncio.wait({idle, second}, timeout=drain_timeout, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    second.cancel()
    return 0


class _StopRequests:
    """SIGTERM and SIGINT: the first asks for a shutdown that lets streams finish, the second for one now."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    def on_second(self, callback: Callable[[], None]) -> None:
        """Call this at the second signal; now, if that has come already."""
        if self.second.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    def _on_signal(self) -> None:
        if not self.first.is_set():
            self.first.set()
            return
        self.second.set()
        while self._callbacks:
            self._callbacks.pop()()


class _HttpServer(uvicorn.Server):
    """uvicorn's server without its signal handlers, which would end the process by the signal they caught."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def leave_now(self) -> None:
        """Do not wait for connections."""
        self.force_exit = True


def _http_server(app: Starlette, *, debug: bool) -> _HttpServer:
    return _HttpServer(
        uvicorn.Config(
            app,
            http=StreamProtocol,
            ws="none",
            lifespan="off",
            log_config=None,  # rbee.logs has configured logging
            log_level="debug" if debug else "warning",
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_RESPONSE_PATIENCE,
        )
    )


def _look_period(timeout: float) -> float:
    """Seconds between two looks at all streams, for ends that come at most a tenth too late."""
    return min(max(timeout / 10, _FASTEST_LOOK), _SLOWEST_LOOK)


def check_options(options: ServerConfig) -> None:
    """Raise ConfigError for options that cannot work, or that would let strangers in."""
    if options.ring_capacity < 2 or options.ring_capacity & (options.ring_capacity - 1):
        raise ConfigError(f"--ring-capacity is {options.ring_capacity}; it must be a power of two, for example 1024.")
    for name in ("max_requests", "max_body_mib", "replay_window"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least 1.")
    if not all(key.isascii() and key.strip() for key in options.api_key):
        raise ConfigError("--api-key must be a word of ASCII characters, not an empty one.")
    if not (options.api_key or options.insecure or _is_loopback(options.host)):
        raise ConfigError(
            f"--host {options.host} can be reached from other machines; give an --api-key, or --insecure to do without."
        )


def allow_descriptors(max_requests: int) -> None:
    """Let this process open a connection for each of `max_requests`, as far as the system allows it.

    Raises:
        ConfigError: it does not allow that many.
    """
    needed = max_requests + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"--max-requests {max_requests} needs {needed} file descriptors, but this process may open only {hard}: "
            "raise the limit (ulimit -Hn) or lower the option."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        # Connections that only wait for their turn need one too: take all there is, up to twice the need.
        most = 2 * needed if hard == resource.RLIM_INFINITY else min(hard, 2 * needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `host` (a name takes its first IPv4 address, else its first IPv6 one) and `port`.

    What is set here is inherited by the connections it accepts: no delay for small writes, and a bounded send buffer,
    so that what a slow client holds up is its own ring and not the kernel's memory.

    Raises:
        ConfigError: the address cannot be used.
    """
    where = f"{host}:{port}"
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} is not an address of this machine: {error}.") from error
    family, kind, protocol, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        remedy = "stop what uses it, or choose another with --port (0 takes a free one)"
        raise ConfigError(f"Cannot listen on {where}: {error.strerror}; {remedy}.") from error
    return sock


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(line: str) -> None:
    """One line on stdout, for people and for programs that wait for it."""
    sys.stdout.write(f"rbee: {line}\n")
    sys.stdout.flush()
