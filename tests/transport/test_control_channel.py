"""Frames on the control socket: cut anywhere, ended anywhere, too long."""

from __future__ import annotations

import select
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.errors import TransportError
from rbee.transport.control import MAX_FRAME_BYTES, ControlChannel, FrameDecoder, frame

PAYLOADS = [b"", b"a", b"hello", bytes(range(256))]


@pytest.fixture
def ends():
    """(the engine's channel, the server's plain socket)."""
    ours, theirs = socket.socketpair()
    channel = ControlChannel(ours)
    yield channel, theirs
    channel.close()
    theirs.close()


def test_frames_survive_a_cut_at_every_byte():
    """Wherever the stream is cut in two, the same payloads come out, and no early one waits for a later one."""
    stream = b"".join(map(frame, PAYLOADS))
    ends = [sum(len(frame(payload)) for payload in PAYLOADS[: i + 1]) for i in range(len(PAYLOADS))]
    for cut in range(len(stream) + 1):
        decoder = FrameDecoder()
        first = decoder.feed(stream[:cut])
        assert first == PAYLOADS[: sum(end <= cut for end in ends)]
        assert first + decoder.feed(stream[cut:]) == PAYLOADS


@given(st.lists(st.binary(max_size=40)), st.data())
def test_frames_survive_any_cuts(payloads, data):
    """The same with any number of cuts, byte by byte in the extreme."""
    stream = b"".join(map(frame, payloads))
    decoder, received = FrameDecoder(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:cut])
        stream = stream[cut:]
    assert received == payloads


def test_oversized_frames_are_refused_on_both_ends():
    """A length beyond the bound is damage, not a reason to allocate; the sender refuses to produce one."""
    with pytest.raises(TransportError, match="longer than"):
        FrameDecoder().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(TransportError, match="longer than"):
        frame(bytes(MAX_FRAME_BYTES + 1))
    assert FrameDecoder().feed(struct.pack("<I", MAX_FRAME_BYTES)) == []


def test_receive_returns_what_is_there_and_never_waits(ends):
    """Nothing sent, nothing returned; half a frame is kept until the other half comes."""
    channel, theirs = ends
    assert channel.receive() == []
    theirs.sendall(frame(b"one") + frame(b"two")[:5])
    assert channel.receive() == [b"one"]
    theirs.sendall(frame(b"two")[5:])
    assert channel.receive() == [b"two"]


def test_fileno_becomes_readable_with_a_frame(ends):
    """The descriptor is the one to wait for."""
    channel, theirs = ends
    assert select.select([channel], [], [], 0)[0] == []
    theirs.sendall(frame(b"wake"))
    assert select.select([channel], [], [], 10)[0] == [channel]


def test_what_was_sent_before_the_end_is_received_before_the_end(ends):
    """The peer's last frames arrive although it is gone; then comes EOFError, again and again."""
    channel, theirs = ends
    theirs.sendall(frame(b"last") + b"\x09\x00")
    theirs.close()
    assert channel.receive() == [b"last"]
    for _ in range(2):
        with pytest.raises(EOFError):
            channel.receive()


def test_peer_that_never_read_ends_the_channel(ends):
    """A peer that closes with our bytes unread resets the connection: that is an end like any other."""
    channel, theirs = ends
    channel.send(b"unread")
    theirs.close()
    with pytest.raises(EOFError):
        channel.receive()


def test_send_delivers_a_payload_larger_than_the_socket_buffer(ends):
    """send() goes on until the kernel has taken everything, however slowly the peer reads."""
    channel, theirs = ends
    payload = bytes(range(256)) * 20_000
    decoder = FrameDecoder()
    received: list[bytes] = []

    def read() -> None:
        while not received:
            received.extend(decoder.feed(theirs.recv(65536)))

    reader = threading.Thread(target=read)
    reader.start()
    channel.send(payload)
    reader.join()
    assert received == [payload]
