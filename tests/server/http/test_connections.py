"""Which connections get a place, and what the log says when there is none."""

from __future__ import annotations

import logging

import pytest

from rbee.server.http.connections import Connections


class FakeConnection:
    """A newcomer, or the protocol that it gets."""

    def __init__(self, address: str = "10.0.0.1") -> None:
        self.address = address
        self.dropped = False

    def drop(self) -> None:
        """Keep it."""
        self.dropped = True


def answering(places: Connections, number: int, address: str = "10.0.0.1") -> list[FakeConnection]:
    """So many that are being answered."""
    connections = []
    for _ in range(number):
        newcomer, connection = FakeConnection(address), FakeConnection(address)
        places.add(newcomer)
        assert places.hand_over(newcomer, connection)
        places.answers(connection)
        connections.append(connection)
    return connections


def refused(places: Connections, address: str = "10.0.0.1") -> bool:
    """Whether one more of this address gets no place."""
    newcomer, connection = FakeConnection(address), FakeConnection(address)
    places.add(newcomer)
    has_place = places.hand_over(newcomer, connection)
    places.remove(connection)
    return not has_place


@pytest.mark.parametrize("kind", ["all", "address"])
def test_a_line_per_burst(caplog, kind):
    """The log tells again when an eighth of the places was free meanwhile; an address is told apart from others."""
    caplog.set_level(logging.WARNING)
    places = Connections(16) if kind == "all" else Connections(0, 16)
    held = answering(places, 16)
    for _ in range(3):
        assert refused(places)
    assert len(caplog.records) == 1
    for few, lines in [(2, 1), (3, 2), (3, 3)]:
        for connection in held[:few]:
            places.remove(connection)
        held[:few] = answering(places, few)
        assert refused(places)
        assert len(caplog.records) == lines
    if kind == "address":
        assert not refused(places, "10.0.0.2")
        assert "of 10.0.0.1 are open (--max-connections-per-address)" in caplog.text
    else:
        assert "16 connections are open (--max-connections)" in caplog.text


def test_the_oldest_of_those_without_a_place_goes():
    """There are 16 of them at most, whether they have their protocols yet or not."""
    places = Connections(1)
    answering(places, 1)
    newcomers = [FakeConnection() for _ in range(8)]
    for newcomer in newcomers:
        places.add(newcomer)
    connections = [FakeConnection() for _ in range(4)]
    for newcomer, connection in zip(newcomers, connections, strict=False):
        assert not places.hand_over(newcomer, connection)
    later = [FakeConnection() for _ in range(14)]
    for newcomer in later:
        places.add(newcomer)
    # Handing over has made the first four the newest of their time: 4, 5, 6, 7, 0, 1 have gone.
    assert [newcomer.dropped for newcomer in newcomers] == [False] * 4 + [True] * 4
    assert [connection.dropped for connection in connections] == [True, True, False, False]
    assert not any(newcomer.dropped for newcomer in later)


def test_those_that_wait_give_way_the_longest_first():
    """Newcomers and protocols alike; who is answered does not."""
    places = Connections(3)
    [answered] = answering(places, 1)
    newcomer = FakeConnection()
    places.add(newcomer)
    [idle] = answering(places, 1)
    places.waits(idle)
    places.add(FakeConnection())
    assert (newcomer.dropped, idle.dropped, answered.dropped) == (True, False, False)
    assert places.give_way()
    assert idle.dropped
    assert places.give_way()
    assert not places.give_way()
    assert not answered.dropped


def test_one_with_a_protocol_waits_until_it_is_answered():
    """What it has sent may be no whole request."""
    places = Connections(1)
    newcomer, connection = FakeConnection(), FakeConnection()
    places.add(newcomer)
    assert places.hand_over(newcomer, connection)
    places.add(FakeConnection())
    assert (newcomer.dropped, connection.dropped, len(places)) == (False, True, 1)


def test_only_the_own_address_gives_way_at_its_bound():
    """Another's connection that has waited longer stays."""
    places = Connections(0, 2)
    other, mine = FakeConnection("10.0.0.2"), FakeConnection()
    for newcomer in (other, mine, FakeConnection(), FakeConnection()):
        places.add(newcomer)
    assert (other.dropped, mine.dropped) == (False, True)


def test_unix_sockets_have_no_address():
    """The bound of an address does not hold for them."""
    places = Connections(0, 2)
    answering(places, 5, "")
    assert not refused(places, "")
