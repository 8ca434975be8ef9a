"""The server process: listens, starts the engine, loads the tokenizer, serves until a signal, releases everything.

Owns the order at start and at the end, signals, and the exit code. Does not know routes or tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import uvloop

from rbee.errors import ConfigError, EngineUnavailableError
from rbee.server import assembly
from rbee.server.garbage import collected_when_idle
from rbee.server.http.connections import Connections
from rbee.server.http.descriptors import allow_descriptors
from rbee.server.http.listener import HttpServer, check_access, listen, listen_on_path, remove_name, url_of
from rbee.server.http.tls import ServerTls
from rbee.server.service_manager import ServiceManager
from rbee.server.text import served_model
from rbee.server.text.grammars import GrammarChecks
from rbee.server.text.output import output_format
from rbee.standard_streams import say
from rbee.transport import ServerState

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from rbee.config import Config, ServerConfig
    from rbee.models import ModelFolder
    from rbee.server.http.door import Door
    from rbee.server.http.keys import KeyRing
    from rbee.server.link.supervisor import Supervisor
    from rbee.server.reports.traces import Traces
    from rbee.server.text.served_model import ServedModel

_log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005  # seconds after which a thread gives Python's lock to one that waits for it


def run(config: Config, model: ModelFolder | None) -> int:
    """Serve `model` (None: the synthetic one) until SIGTERM or SIGINT; the exit code.

    Prints `rbee: listening on URL` when the port is open and `rbee: ready (...)` when requests are taken.

    Returns:
        0 after a shutdown on request, 1 if the engine died too often, 2 if it could not start (the log has the reason).

    Raises:
        RbeeError: an option or the model makes it impossible to serve.
    """
    started = time.monotonic()
    options = config.server
    door = assembly.make_door(options)
    tls = ServerTls(options.tls_cert, options.tls_key) if options.tls_cert else None
    output_format(None, tool_parser=options.tool_parser, reasoning_parser=options.reasoning_parser)  # are there such?
    served_model.check_template_file(options.chat_template)
    if not options.uds:
        check_access(options.host, door.keys, insecure=options.insecure)
    if door.keys.others_can_read:
        _log.warning("other users can read --api-key-file %s", options.api_key_file)
    allow_descriptors(options.max_requests, "--max-requests")
    allow_descriptors(options.max_connections, "--max-connections")
    # Work in a thread must not keep the event loop from a token: Python's usual 5 ms are a step of the engine.
    sys.setswitchinterval(SWITCH_INTERVAL)
    with contextlib.ExitStack() as resources:
        traces = assembly.make_traces(options)
        if traces is not None:
            resources.callback(traces.close)
        sock = resources.enter_context(_listen(options))
        if options.uds:
            remove = partial(remove_name, options.uds, Path(options.uds).stat().st_ino)
            resources.callback(remove)
            _remove_at_signal(remove)
        say(f"rbee: listening on {url_of(sock, tls=tls is not None)}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(config, model, _Entry(sock, tls, door), traces, started=started))


class _Entry(NamedTuple):
    """Where requests come in."""

    sock: socket.socket
    tls: ServerTls | None
    door: Door


def _listen(options: ServerConfig) -> socket.socket:
    return listen_on_path(options.uds) if options.uds else listen(options.host, options.port)


def _port_of(sock: socket.socket) -> int:
    """0 for a Unix socket."""
    name = sock.getsockname()
    return 0 if isinstance(name, str | bytes) else int(name[1])


def _remove_at_signal(remove: Callable[[], None]) -> None:
    """Until the event loop handles the signals they end the process at once, as before, but for this."""

    def leave(_number: int, _frame: object) -> None:
        remove()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


async def _serve(
    config: Config, model: ModelFolder | None, entry: _Entry, traces: Traces | None, *, started: float
) -> int:
    supervisor = assembly.make_supervisor(config)
    with (
        _StopSignals() as stop,
        _reload_signal(entry.door.keys, entry.tls),
        contextlib.closing(ServiceManager()) as manager,
        contextlib.ExitStack() as until_end,
    ):
        await supervisor.start()
        try:
            served = _load(config.server, model)  # while the engine loads the weights on another core
            grammars = GrammarChecks(served.vocabulary)
            until_end.callback(grammars.close)
            app = assembly.assemble(config.server, served, supervisor, entry.door, traces, grammars=grammars)
            http = HttpServer(
                app,
                slow_reader_timeout=config.server.slow_reader_timeout,
                keep_alive_timeout=config.server.keep_alive_timeout,
                connections=Connections(config.server.max_connections, config.server.max_connections_per_address),
                tls=entry.tls,
                debug=config.debug,
            )
            serving = asyncio.create_task(http.serve(sockets=[entry.sock]))
            try:
                async with assembly.heartbeats(config.server, supervisor, served.name, _port_of(entry.sock)):
                    code = await _until_stopped(supervisor, manager, stop, served.name, started, until_end=until_end)
                manager.stopping()
                if code == 0:
                    await _drain(supervisor, stop, config.server)
                return code
            finally:
                supervisor.end_requests()
                grammars.close()  # requests wait for it too
                http.should_exit = True
                stop.on_second(http.leave_now)
                stop.on_second(supervisor.kill)
                await serving
        finally:
            await supervisor.stop(assembly.ENGINE_PATIENCE)


def _load(options: ServerConfig, model: ModelFolder | None) -> ServedModel:
    """What clients see of the model. Takes up to a second, all of it without giving way to another thread."""
    if model is None:
        name = options.served_model_name or "synthetic"
        return served_model.load_synthetic(name, pooling=options.pooling, template_file=options.chat_template)
    return served_model.load(
        options.served_model_name or model.name,
        model.path,
        use_generation_config=options.generation_config == "auto",
        trust_content=options.trust_content,
        pooling=options.pooling,
        tool_parser=options.tool_parser,
        reasoning_parser=options.reasoning_parser,
        template_file=options.chat_template,
    )


async def _until_stopped(
    supervisor: Supervisor,
    manager: ServiceManager,
    stop: _StopSignals,
    model: str,
    started: float,
    *,
    until_end: contextlib.ExitStack,
) -> int:
    """Wait for the engine, then for a signal or the engine's last death; the exit code.

    What a server that is ready holds until its end is entered into `until_end`.
    """
    first = asyncio.create_task(stop.first.wait())
    ready = asyncio.create_task(supervisor.wait_ready())
    waited_for: set[asyncio.Future[Any]] = {ready, first}
    await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        return 0
    try:
        engine = ready.result()
    except EngineUnavailableError:
        first.cancel()
        return 2
    until_end.enter_context(collected_when_idle(lambda: not supervisor.client.rings_in_use))
    manager.ready()
    say(f"rbee: ready (model {model}, runner {engine.runner}, {time.monotonic() - started:.1f} s)")
    given_up = asyncio.create_task(supervisor.wait_given_up())
    await asyncio.wait({first, given_up}, return_when=asyncio.FIRST_COMPLETED)
    first.cancel()
    given_up.cancel()
    return 0 if stop.first.is_set() else 1


async def _drain(supervisor: Supervisor, stop: _StopSignals, options: ServerConfig) -> None:
    """Take no new requests, after a delay; return when the open ones have ended, or their time has."""
    second = asyncio.create_task(stop.second.wait())
    if options.drain_delay and supervisor.state is ServerState.READY:
        supervisor.look_away()
        _log.info("stopping; requests are taken for another %g s", options.drain_delay)
        await asyncio.wait({second}, timeout=options.drain_delay)
    supervisor.refuse_new()
    _log.info("stopping; open requests have %g s to finish", options.drain_timeout)
    idle = asyncio.create_task(supervisor.client.wait_idle())
    await asyncio.wait({idle, second}, timeout=options.drain_timeout, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    second.cancel()


@contextlib.contextmanager
def _reload_signal(keys: KeyRing, tls: ServerTls | None) -> Iterator[None]:
    """SIGHUP reads the keys' file and the certificate again; without either it is ignored, as before and after."""

    def reload() -> None:
        if keys.can_change:
            try:
                keys.reload()
            except ConfigError as error:
                _log.error("%s The API keys stay as they were.", error)
            else:
                _log.warning("%d API keys are in force", len(keys))
        if tls is not None:
            try:
                tls.reload()
            except ConfigError as error:
                _log.error("%s The certificate stays as it was.", error)
            else:
                _log.warning("the certificate was read again, for new connections")

    if not keys.can_change and tls is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _StopSignals:
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
