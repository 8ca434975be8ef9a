"""Outlets whose frames show which they are, and what a client receives of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.transport import FrameTemplate, LastFrames, Outlet, Slot, Vocabulary

if TYPE_CHECKING:
    import socket

VOCABULARY = Vocabulary([bytes([byte]) for byte in range(256)])


def last_frames(after: bytes) -> LastFrames:
    """Frames that end with `after`."""
    return LastFrames(b"F%b%b" % (Slot.TEXT, after), b"N%b%b" % (Slot.TEXT, after), b"E" + after, b'F""' + after)


# Frames that show which they are: F "a" A, for example.
TEMPLATE = FrameTemplate(
    first=b"F%bA\n\n" % Slot.TEXT,
    next=b"N%bA\n\n" % Slot.TEXT,
    stop=last_frames(b"S\n\n"),
    length=last_frames(b"L\n\n"),
    deadline=last_frames(b"T\n\n"),
    end=b"D",
)
STOP, LENGTH, ERROR, DEADLINE = 1, 2, 4, 5


def make_outlet(
    fd: int,
    *,
    stop_token_ids: tuple[int, ...] = (),
    template: FrameTemplate = TEMPLATE,
    keep_text: bool = False,
) -> Outlet:
    """An outlet that shows each byte in a frame of its own."""
    return Outlet(
        fd,
        VOCABULARY,
        template,
        strip=False,
        prompt_tokens=3,
        stop_token_ids=list(stop_token_ids),
        keep_text=keep_text,
    )


def chunk(body: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data
