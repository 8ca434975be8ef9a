"""TLS on a connection: its certificate, its handshake, and the place that it takes from its first byte on.

Owns what `create_server(ssl=...)` leaves out. The connection counts, and can give way, before its handshake is over.
Many handshakes at once do not hold the event loop: each turn of it computes one.
What waits below TLS is seen, what comes behind the end of the answers is bounded, and nothing watches a descriptor when
it is closed. Does not know requests. uvloop's `SSLProtocol` has a name but no documentation: pyproject.toml bounds
uvloop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined] # its stubs leave it out

from rbee.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.server.http.connections import BoundedProtocol

_END_TIME = 60.0  # seconds in which the rest of the last answer must leave, and the client end TLS too
_REST_BYTES = 8 * 2**20  # that a client may send meanwhile; they are thrown away


class Turns:
    """Calls functions in the order in which they came, one in each turn of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()

    def add(self, function: Callable[[], None]) -> None:
        """Call it when those before it have been called."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._call_next)
        self._waiting.append(function)

    def _call_next(self) -> None:
        function = self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._call_next)
        function()


class ServerTls:
    """The certificate that new connections are served https with.

    Args:
        cert: a PEM file, with the chain.
        key: a PEM file with its private key.

    Raises:
        ConfigError: they cannot be used.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert, self._key = cert, key
        self.context = _context(cert, key)
        self.handshakes = Turns()  # a signature takes up to 2 ms, and a client costs it nothing

    def reload(self) -> None:
        """Read both files again. ConfigError: they cannot be used, and what was in force stays."""
        self.context = _context(self._cert, self._key)


def _context(cert: str, key: str) -> ssl.SSLContext:
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{option} {path} cannot be read: {error.strerror}.") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tls-cert {cert} and --tls-key {key} cannot be used: {_reason(error)}.") from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; give one without (openssl pkey)")


def _reason(error: OSError | ValueError) -> str:
    if not isinstance(error, ssl.SSLError):
        return str(error)
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    if not error.reason:  # OpenSSL's own words for this are "PEM lib"
        return "give PEM files, the certificate in the first and its private key in the second"
    return error.reason.replace("_", " ").lower()


class TlsProtocol(asyncio.BufferedProtocol):
    """One connection below its requests, which `connection` gets in clear.

    Args:
        connection: of the requests. It takes its place now, and is made when the handshake is over.
        tls: has the certificate.
        handshake_timeout: seconds that the handshake may take.
    """

    _transport: asyncio.Transport

    def __init__(self, connection: BoundedProtocol, tls: ServerTls, handshake_timeout: float) -> None:
        self._connection: BoundedProtocol | None = connection
        self._handshakes = tls.handshakes
        self._tls = SSLProtocol(
            asyncio.get_running_loop(),
            connection,
            tls.context,
            None,
            server_side=True,
            ssl_handshake_timeout=handshake_timeout,
            ssl_shutdown_timeout=_END_TIME,
        )
        self._rest_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in the base class
        assert self._connection is not None
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # what waits does so above TLS, where it is bounded
        self._connection.before_tls(transport)
        self._tls.connection_made(transport)

    def buffer_updated(self, nbytes: int) -> None:
        connection = self._connection
        if connection is None:
            return
        if connection.transport is self._transport:  # no handshake yet
            self._transport.pause_reading()  # what has come stays in its buffer
            self._handshakes.add(partial(self._shake_hands, nbytes))
            return
        if connection.transport.is_closing():
            self._rest_bytes += nbytes
            if self._rest_bytes > _REST_BYTES:
                connection.transport.abort()
                return
        self._tls.buffer_updated(nbytes)

    def _shake_hands(self, nbytes: int) -> None:
        if self._connection is None:
            return
        self._tls.buffer_updated(nbytes)
        if not self._transport.is_closing():
            self._transport.resume_reading()  # TLS itself pauses it only with more than one buffer waiting

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._tls.get_buffer(sizehint)  # type: ignore[no-any-return] # untyped

    def eof_received(self) -> bool | None:
        return self._tls.eof_received()  # type: ignore[no-any-return] # untyped

    def pause_writing(self) -> None:
        self._tls.pause_writing()

    def resume_writing(self) -> None:
        self._tls.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        connection, self._connection = self._connection, None  # which refers to this one
        if connection is not None:
            connection.after_tls()
        self._tls.connection_lost(exc)
