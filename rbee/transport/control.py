"""Frames on the control socket: the payload's length as 4 little-endian bytes, then the payload.

Owns framing and the engine's end of the socket. Does not know payloads (`rbee.messages`) or the server's event loop.
"""

from __future__ import annotations

import select
import struct
from typing import TYPE_CHECKING

from rbee.errors import TransportError

if TYPE_CHECKING:
    import socket

MAX_FRAME_BYTES = 64 * 2**20
_LENGTH = struct.Struct("<I")
_RECEIVE_BYTES = 256 * 1024


def frame(payload: bytes) -> bytes:
    """Prefix the payload with its length; TransportError above `MAX_FRAME_BYTES`."""
    _check_length(len(payload))
    return _LENGTH.pack(len(payload)) + payload


class FrameDecoder:
    """Splits a byte stream that arrives in any pieces into payloads."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads that `data` completes, in order; TransportError for a length above the limit."""
        received = self._received
        received += data
        payloads = []
        start = 0
        while len(received) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, start)
            _check_length(length)
            end = start + _LENGTH.size + length
            if len(received) < end:
                break
            payloads.append(bytes(received[start + _LENGTH.size : end]))
            start = end
        del received[:start]
        return payloads


class ControlChannel:
    """The engine's end of the socket: reads without blocking, and writes blocking."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = FrameDecoder()

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> list[bytes]:
        """Return the payloads that have arrived since the last call, without waiting.

        Raises EOFError when the peer has closed and all its payloads were returned, TransportError for a bad length.
        """
        payloads: list[bytes] = []
        while True:
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return payloads
            except ConnectionResetError:
                data = b""
            if not data:
                if payloads:
                    return payloads  # the end of the stream stays there for the next call
                raise EOFError("The other end of the control channel has been closed.")
            payloads += self._decoder.feed(data)

    def send(self, payload: bytes) -> None:
        """Send one payload; return when the kernel has all of it. OSError if the peer is gone."""
        data = memoryview(frame(payload))
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                select.select([], [self._sock], [])

    def close(self) -> None:
        self._sock.close()


def _check_length(length: int) -> None:
    if length > MAX_FRAME_BYTES:
        raise TransportError(
            f"A control frame of {length} bytes is longer than {MAX_FRAME_BYTES}; the stream is damaged, "
            "or the request is too large."
        )
