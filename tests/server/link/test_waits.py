"""Retry-After in simulated time: what refused clients are told, against how long they wait."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

import pytest

from rbee.server.link.admission import Admission
from rbee.server.link.waits import LONGEST, Line, ServiceTimes, TokenRate
from tests.server.link.admission_parts import Advice, Job, Service

if TYPE_CHECKING:
    from collections.abc import Callable

PLACES = 64


def closed_loop(
    service: Service, clients: int, work: Callable[[], float], think: Callable[[], float], *, spread: float
) -> None:
    """So many clients, each of which asks again when it has thought about its answer; they begin within `spread`."""

    def start(client: int) -> None:
        def ask() -> None:
            service.ask(Job(client, work()), lambda: service.after(think(), ask))

        service.after(spread * client / clients, ask)

    for client in range(clients):
        start(client)


def open_loop(service: Service, rate: float, rng: random.Random, job: Callable[[int], Job]) -> None:
    """A new client at random, `rate` times a second."""
    number = 0

    def come() -> None:
        nonlocal number
        number += 1
        service.ask(job(number))
        service.after(rng.expovariate(rate), come)

    come()


def good(advice: list[Advice], *, warm: float) -> float:
    """The share of the advice, from `warm` seconds on, that is within a factor of two."""
    steady = [one for one in advice if one.at > warm]
    assert len(steady) > 30
    return sum(one.is_good for one in steady) / len(steady)


@pytest.mark.parametrize("obeys", [False, True])
@pytest.mark.parametrize("seconds", [[8], [20], [2, 2, 2, 2, 16]], ids=str)
def test_steady_closed_loop(obeys: bool, seconds: list[float]) -> None:  # noqa: FBT001 - pytest's parameter
    """Half as many clients more than places: each waits as long as it is told, and places are hardly ever empty."""
    rng = random.Random(1)
    service = Service(Admission(), PLACES, obeys=obeys)
    closed_loop(
        service,
        96,
        lambda: rng.choice(seconds) * rng.uniform(0.9, 1.1),
        lambda: rng.uniform(0, 1),
        spread=statistics.mean(seconds),
    )
    service.run(240)
    assert good(service.advice, warm=60) >= 0.9
    assert service.place_seconds >= 0.95 * PLACES * 240


def test_clients_in_step() -> None:
    """All places end at the same time, far away from the mean time between two ends."""
    service = Service(Admission(), PLACES)
    closed_loop(service, 70, lambda: 20, lambda: 0.5, spread=0)
    service.run(240)
    assert good(service.advice, warm=60) >= 0.95


@pytest.mark.parametrize("obeys", [False, True])
def test_open_loop_above_capacity(obeys: bool) -> None:  # noqa: FBT001 - pytest's parameter
    """The line outside grows all the time, and what clients are told with it."""
    rng = random.Random(2)
    service = Service(Admission(), PLACES, obeys=obeys)
    open_loop(service, 1.2 * PLACES / 20, rng, lambda n: Job(n, rng.expovariate(1 / 20)))
    service.run(240)
    assert good(service.advice, warm=60) >= 0.95


def test_long_and_short_requests() -> None:
    """Four of five take a second, the others twenty."""
    rng = random.Random(3)
    service = Service(Admission(), PLACES)
    closed_loop(service, 128, lambda: rng.choice([1, 1, 1, 1, 20]), lambda: rng.uniform(0, 1), spread=5)
    service.run(150)
    assert good(service.advice, warm=60) >= 0.9


def test_queue_bounded_by_requests() -> None:
    """The wait is that for a seat in the queue, not in the server."""
    rng = random.Random(4)
    service = Service(Admission(max_num_seqs=16, max_queued_requests=16), PLACES)
    closed_loop(service, 48, lambda: rng.uniform(5, 15), lambda: rng.uniform(0, 1), spread=10)
    service.run(200)
    assert good(service.advice, warm=60) >= 0.95


def test_queue_bounded_by_tokens() -> None:
    """The wait is that for prompts to begin, whatever their sequences do then."""
    rng = random.Random(5)
    service = Service(Admission(max_queued_tokens=5000), 1024, token_rate=1000)
    open_loop(service, 1.3, rng, lambda n: Job(n, 30, rng.randint(10, 2000)))
    service.run(100)
    assert good(service.advice, warm=20) >= 0.9


def after(first: float, period: float) -> Callable[[float], float]:
    """There is room after `first` seconds, and more every `period`."""
    return lambda ahead: first + ahead * period


def test_those_who_come_at_once_are_not_sent_back_at_once() -> None:
    """A place is free every two seconds: of ten clients one is told to come back for each."""
    line = Line()
    told = [line.join(client, 1, after(2, 2), 100) for client in range(10)]
    assert told == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


def test_client_that_asks_all_the_time_keeps_its_place() -> None:
    """It makes the wait of others no longer; one that does not come back does so no more after its time."""
    line = Line()
    for _ in range(100):
        assert line.join("impatient", 1, after(5, 3), 0) == 5
    assert line.join("other", 1, after(5, 3), 0) == 8
    line.leave("impatient")
    assert line.join("third", 1, after(5, 3), 1) == 8
    assert len(line) == 2
    assert line.join("fourth", 1, after(5, 3), 20) == 5
    assert len(line) == 1


def test_who_is_due_is_kept_a_place_for_a_while() -> None:
    """From when it was told to come back until it is late; it is not in its own way."""
    line = Line()
    line.join("early", 1, after(10, 1), 0)
    line.join("late", 2, after(20, 1), 0)
    assert [line.due("other", now) for now in (9, 10, 12, 13, 20, 21, 22, 23.5)] == [0, 1, 1, 0, 0, 2, 2, 0]
    assert [line.due("early", now) for now in (9, 10, 12, 21)] == [0, 0, 0, 2]
    line.leave("late")
    assert line.due("other", 21) == 0


def test_nobody_in_particular_has_no_place_in_line() -> None:
    """Clients that cannot be told apart are told the same."""
    line = Line()
    assert [line.join(None, 1, after(3, 9), 0) for _ in range(3)] == [3, 3, 3]


def test_nobody_waits_longer_than_a_minute() -> None:
    """The line has no places after that; it grows no further."""
    line = Line()
    told = [line.join(client, 1, after(0.1, 1), 0) for client in range(1000)]
    assert (min(told), max(told), len(line)) == (1, LONGEST, 60)


def test_first_sequences_end_at_even_odds_within_their_age() -> None:
    """There is nothing else to go by; afterwards what is left of the time that the last ones took counts."""
    times = ServiceTimes()
    times.begin(0, 0.0)
    assert (times.until_free(1, 0, 8.0), times.until_free(1, 1, 8.0)) == (8.0, LONGEST)
    for ring in (1, 2):
        times.begin(ring, 0.0)
        times.end(ring, 10.0)
    assert (times.until_free(1, 0, 4.0), times.until_free(1, 1, 4.0)) == (6.0, 16.0)
    assert times.until_free(1, 0, 1000.0) == LONGEST


def test_estimate_follows_each_begin_and_end_and_the_time() -> None:
    """What an earlier refusal has computed is used again only while it is true."""
    rng = random.Random(5)
    asked, events, open_rings = ServiceTimes(), list[tuple[bool, int, float]](), set[int]()
    for step in range(300):
        now, ring = float(step // 3), rng.randrange(20)
        begins = ring not in open_rings
        open_rings ^= {ring}
        events.append((begins, ring, now))
        (asked.begin if begins else asked.end)(ring, now)
        places = rng.randint(1, 3)
        for at in (now, now + 0.3):
            fresh = ServiceTimes()
            for begin, one, when in events:
                (fresh.begin if begin else fresh.end)(one, when)
            assert asked.until_free(places, 2, at) == fresh.until_free(places, 2, at)


def test_rate_of_tokens_is_that_of_the_time_in_which_some_were_queued() -> None:
    """An idle hour is no slow hour."""
    rate = TokenRate()
    rate.observe(0, submitted=0, queued=0)
    rate.observe(3600, submitted=100, queued=100)
    rate.observe(3601, submitted=150, queued=100)
    assert rate.period == 1 / 50
    rate.observe(3602, submitted=150, queued=0)
    assert rate.period == 2 / 150
