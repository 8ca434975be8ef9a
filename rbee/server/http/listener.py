"""The listening socket, uvicorn's configuration on it, and what must hold before others can connect.

Owns these. Does not know the application, or when it is served.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from rbee.errors import ConfigError
from rbee.server.http.acceptor import Acceptor
from rbee.server.http.connections import BoundedProtocol, Connections
from rbee.server.http.departures import Departures
from rbee.server.http.door import is_loopback
from rbee.server.http.tls import TlsProtocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp

    from rbee.server.http.acceptor import Newcomer
    from rbee.server.http.keys import KeyRing
    from rbee.server.http.tls import ServerTls

_BACKLOG = 2048
_SEND_BUFFER = 128 * 1024  # bytes the kernel holds for one slow client (it books twice that); a token's frame has 250
_RESPONSE_PATIENCE = 2  # seconds the last responses may take to leave, once nothing is open any more


_OTHER_PORT = "stop what uses it, or choose another with --port (0 takes a free one)"
_REMEDIES = {
    errno.EADDRNOTAVAIL: "--host is no address of this machine: give one that `ip address` lists, or 0.0.0.0 for all",
    errno.EACCES: "ports below 1024 need a privilege (CAP_NET_BIND_SERVICE): choose a higher one with --port",
}


class HttpServer(uvicorn.Server):
    """uvicorn's server without its signal handlers, which would end the process by the signal they caught."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        slow_reader_timeout: float = 60.0,
        keep_alive_timeout: int = 75,
        head_timeout: float = 30.0,
        connections: Connections | None = None,
        tls: ServerTls | None = None,
        debug: bool = False,
    ) -> None:
        """Its times are in seconds.

        Args:
            app: the application.
            slow_reader_timeout: how long a client may leave an answer unread that is not being streamed any more.
            keep_alive_timeout: how long a connection may be idle after an answer.
            head_timeout: how long a connection may take to its first request, a request to the end of its head, and a
                TLS handshake.
            connections: bounds how many there are.
            tls: makes it serve https. Needs uvloop.
            debug: uvicorn logs what it does.
        """
        self._places = Connections() if connections is None else connections
        self._head_timeout = head_timeout
        self._tls = tls
        self._make: Callable[..., BoundedProtocol] = partial(
            BoundedProtocol,
            places=self._places,
            departures=Departures(),
            unread_timeout=slow_reader_timeout,
            head_timeout=head_timeout,
        )
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",  # the process starts and stops the engine itself, in its own order
                log_config=None,  # rbee.logs has configured logging
                log_level="debug" if debug else "warning",
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=keep_alive_timeout,
                timeout_graceful_shutdown=_RESPONSE_PATIENCE,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Have an `Acceptor` where uvicorn has asyncio's server, which gives each connection all it needs at once."""
        await super().startup(sockets=[])
        self.servers = [
            Acceptor(  # type: ignore[misc] # all of a server that uvicorn uses
                sock,
                self._places,
                self._make_protocol,
                head_timeout=self._head_timeout,
                reads=self._tls is None,
            )
            for sock in sockets or []
        ]

    def _make_protocol(self, newcomer: Newcomer) -> asyncio.BaseProtocol:
        connection = self._make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, newcomer=newcomer
        )
        return connection if self._tls is None else TlsProtocol(connection, self._tls, self._head_timeout)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def leave_now(self) -> None:
        self.force_exit = True


class ListeningSocket(socket.socket):
    """Accepts without asking for its own family and kind, of which Python makes enumerations each time.

    That would take as long as accept(2) itself, while thousands wait.
    """

    def __init__(self, family: int, protocol: int = 0) -> None:
        super().__init__(family, socket.SOCK_STREAM, protocol)
        self._kind = (family, socket.SOCK_STREAM, protocol)

    def accept(self) -> tuple[socket.socket, Any]:
        descriptor, peer = self._accept()  # type: ignore[attr-defined] # what accept(2) gives
        return socket.socket(*self._kind, fileno=descriptor), peer


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `host` (a name takes its first IPv4 address, else its first IPv6 one) and `port`.

    Its connections inherit TCP_NODELAY, and a bounded send buffer, so that a slow client fills its ring and not the
    kernel's memory.

    Raises:
        ConfigError: the address cannot be used.
    """
    where = f"{host}:{port}"
    host = _without_brackets(host)
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} is not an address of this machine: {error}.") from error
    family, _, protocol, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    sock = ListeningSocket(family, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        sock.bind(address)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        remedy = _REMEDIES.get(error.errno or 0, _OTHER_PORT)
        raise ConfigError(f"Cannot listen on {where}: {error.strerror}; {remedy}.") from error
    return sock


def listen_on_path(path: str) -> socket.socket:
    """A listening Unix socket of this name, for its user and group. One that nobody listens on any more is replaced.

    Its connections have the system's send buffer (net.core.wmem_default): they inherit none.

    Raises:
        ConfigError: the name cannot be used.
    """
    sock = ListeningSocket(socket.AF_UNIX)
    try:
        _remove_left(path)
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)  # a name that is too long has no strerror
        raise ConfigError(f"Cannot listen on --uds {path}: {reason}; choose another name.") from error
    return sock


def remove_name(path: str, inode: int) -> None:
    """Remove the name of our own Unix socket; another server may have taken it meanwhile."""
    with contextlib.suppress(OSError):
        if Path(path).stat().st_ino == inode:
            Path(path).unlink()


def _remove_left(path: str) -> None:
    """Remove the socket that a server has left at its end, if there is one."""
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except BlockingIOError:  # a server whose backlog is full
                pass
            except ConnectionRefusedError:
                Path(path).unlink(missing_ok=True)


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """The URL of a listening socket; unix:PATH for one that has no host."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_access(host: str, keys: KeyRing, *, insecure: bool) -> None:
    """Raise ConfigError for a public address without a key."""
    if not (len(keys) or insecure or is_loopback(host)):
        raise ConfigError(
            f"--host {host} can be reached from other machines; give an --api-key-file, or --insecure to do without."
        )


def _without_brackets(host: str) -> str:
    """The address, of one that is written as in a URL: [::1]."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
