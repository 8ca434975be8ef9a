"""An arena with both of its sides in one process, for tests of what the calls promise."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rbee.transport import Arena, Consumer, Producer, create_doorbell
from tests.raw_client import limit_receive_buffer
from tests.transport.compiled import Compiling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_COMPILING = pytest.StashKey[Compiling]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin what compilers take long for, if tests want it that will run; these are among the last."""
    names = {mark.args[0] for item in session.items for mark in item.iter_markers("compiled")}
    if names and not session.config.option.collectonly:
        compiling = session.config.stash[_COMPILING] = Compiling(names)
        session.config.add_cleanup(compiling.close)


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Any:
    """What came of the job that the test's mark names."""
    [mark] = request.node.iter_markers("compiled")
    return request.config.stash[_COMPILING].result(mark.args[0])


class Sides:
    """A created arena, the same arena attached, its doorbell, and a Producer and a Consumer in it."""

    def __init__(self, ring_capacity: int, first_index: int) -> None:
        self.created = Arena.create(num_rings=64, ring_capacity=ring_capacity, epoch=5, first_index=first_index)
        self.attached = Arena.attach(self.created.name)
        self.created.unlink()
        self.doorbell = create_doorbell()
        self.producer = Producer(self.attached, self.doorbell)
        self.consumer = Consumer(self.created, self.doorbell)

    def start(self) -> int:
        """Assign and open a ring."""
        assigned = self.consumer.assign()
        assert assigned is not None
        self.producer.open(*assigned)
        return assigned[0]

    def commit(self, tokens: list[tuple[int, int]], finishes: dict[int, int] | None = None) -> int:
        """Commit (ring, token) pairs with logprob -token/1000, and {ring: reason}."""
        finishes = finishes or {}
        return self.producer.commit(
            np.array([ring for ring, _ in tokens], np.uint32),
            np.array([token for _, token in tokens], np.uint32),
            np.array([-token / 1000 for _, token in tokens], np.float32),
            np.array(list(finishes.keys()), np.uint32),
            np.array(list(finishes.values()), np.uint32),
        )

    def rung(self) -> bool:
        """Whether the doorbell is readable; leaves it so."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.doorbell, os.eventfd_read(self.doorbell))
            return True
        return False

    def close(self) -> None:
        """Give everything back."""
        self.producer.close()
        self.consumer.close()
        self.attached.close()
        self.created.close()
        os.close(self.doorbell)


@pytest.fixture
def make_sides() -> Iterator[Callable[..., Sides]]:
    """Makes `Sides`; closes all that it made."""
    made = []

    def make(ring_capacity: int = 8, first_index: int = 0) -> Sides:
        made.append(Sides(ring_capacity, first_index))
        return made[-1]

    yield make
    for sides in made:
        sides.close()


@pytest.fixture
def sides(make_sides: Callable[..., Sides]) -> Sides:
    """One pair with rings of eight records."""
    return make_sides()


@pytest.fixture
def connect() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes connections; (the server's end, the client's end), the former with a small send buffer."""
    with contextlib.ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            client = socket.socket()
            limit_receive_buffer(client, 4096)
            client.connect(listener.getsockname())
            stack.callback(client.close)
            server, _ = listener.accept()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stack.callback(server.close)
            client.settimeout(30)
            return server, client

        yield make
