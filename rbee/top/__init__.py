"""`rbee top`: a view of a running server, read from its arena without the server taking part.

Owns the choice of the server and the loop. Does not know how numbers are read (`rbee.transport.observer`) or shown.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import click

from rbee.errors import ConfigError
from rbee.top import view
from rbee.top.interval import Interval
from rbee.transport import Observer, find_servers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rbee.transport import FoundServer


def run(pid: int | None, *, seconds: float, count: int | None, style: view.Style) -> None:
    """Show intervals of `seconds` until the server has ended or `count` (None: no limit) were shown.

    Without a `pid`, the only server is observed; ConfigError if there is none or more than one. TransportError if the
    server cannot be observed.
    """
    with Observer(choose_server(find_servers()) if pid is None else pid) as observer:
        with view.opened(style, observer.pid) as show:
            for interval in _intervals(observer, seconds, count):
                show(interval)
        if observer.wait(0):
            click.echo(f"rbee: server {observer.pid} has ended.", err=True)


def choose_server(found: Sequence[FoundServer]) -> int:
    """Return the pid of the only observable server, else raise ConfigError; name the others on stderr."""
    for server in found:
        if server.epoch is None:
            click.echo(f"rbee: skipped: {server.problem}", err=True)
    servers = [server for server in found if server.epoch is not None]
    if not servers:
        raise ConfigError(
            "There is no server to look at; start one with `rbee serve`. "
            "Those of other users are seen by root and by themselves only, those in a container from inside it."
        )
    if len(servers) > 1:
        lines = [f"  --pid {server.pid:<8} epoch {server.epoch:<4} {server.command}" for server in servers]
        raise ConfigError("\n".join([f"{len(servers)} servers are running; choose one:", *lines]))
    return servers[0].pid


def _intervals(observer: Observer, seconds: float, count: int | None) -> Iterator[Interval | None]:
    """Yield intervals until the server has ended; None for one at whose end there is no engine."""
    before, started = observer.sample(), time.monotonic()
    for _ in itertools.count() if count is None else range(count):
        if observer.wait(seconds):
            return
        now, ended = observer.sample(), time.monotonic()
        yield None if now is None else Interval.between(before, now, ended - started)
        before, started = now, ended
