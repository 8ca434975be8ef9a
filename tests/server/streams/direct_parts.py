"""The way from an engine to a socket past Python, without an engine."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from rbee.transport import Arena, Consumer, Producer, create_doorbell
from tests.fakes import RecordingWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hypothesis.strategies import SearchStrategy


def token_batches(token_bytes: Callable[[int], bytes], last: int) -> SearchStrategy[list[list[int]]]:
    """What an engine may commit to one ring step by step: ids up to `last`, none that ends with the byte 0xED.

    After that byte Python's decoder waits for a third one even if the second has shown that this is no character.
    """
    ids = st.integers(0, 12) | st.integers(0, last)  # low ones often: in the small vocabularies they are words
    return st.lists(st.lists(ids.filter(lambda n: token_bytes(n)[-1:] != b"\xed"), max_size=6), min_size=1, max_size=8)


class Pipe:
    """An engine's and a server's side of an arena, and a connection; for one stream after the other."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.arena = Arena.create(num_rings=64, ring_capacity=256, epoch=1)
        stack.callback(self.arena.close)
        stack.callback(self.arena.unlink)
        doorbell = create_doorbell()
        stack.callback(os.close, doorbell)
        self.consumer = Consumer(self.arena, doorbell)
        stack.callback(self.consumer.close)
        self.producer = Producer(self.arena, doorbell)
        stack.callback(self.producer.close)
        self.server, self.client = (stack.enter_context(end) for end in socket.socketpair())
        self.client.setblocking(False)

    def commit(self, ring: int, tokens: Sequence[int], reason: int) -> int:
        """One step of one ring; its commit time."""
        finished = [ring] if reason else []
        return self.producer.commit(
            np.full(len(tokens), ring, np.uint32),
            np.array(tokens, np.uint32),
            np.zeros(len(tokens), np.float32),
            np.array(finished, np.uint32),
            np.array([reason] * len(finished), np.uint32),
        )

    def received(self) -> bytes:
        """What the client has got, without the chunks' framing."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while piece := self.client.recv(65536):
                data += piece
        body = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            body += data[: int(size, 16)]
            assert data[int(size, 16) :].startswith(b"\r\n")
            data = data[int(size, 16) + 2 :]
        return body


class SocketWriter(RecordingWriter):
    """Keeps what the event loop would write; the socket itself belongs to the drain."""

    def __init__(self, descriptor: int | None) -> None:
        super().__init__()
        self.descriptor = descriptor
