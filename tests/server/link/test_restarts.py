"""How often an engine may be started again, and when."""

from __future__ import annotations

import pytest

from rbee.server.link.restarts import RestartBudget


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_delays_double() -> None:
    """The first restart comes at once, and no delay is longer than ten seconds."""
    budget = RestartBudget(9, 300, clock=Clock(), spread=lambda: 1.0)
    assert [budget.take() for _ in range(10)] == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, None]


def test_restarts_are_forgotten_after_the_window() -> None:
    """One by one, as each of them gets old."""
    clock = Clock()
    budget = RestartBudget(2, 60, clock=clock, spread=lambda: 1.0)
    assert budget.take() == 0.0
    clock.now += 40
    assert budget.take() == 0.25
    clock.now += 19.9
    assert budget.take() is None
    clock.now += 0.1
    assert budget.take() == 0.25
    clock.now += 60
    assert budget.take() == 0.0


def test_delays_are_spread() -> None:
    """By half of themselves at most."""
    delays = set()
    for _ in range(50):
        budget = RestartBudget(2, 60)
        budget.take()
        delays.add(budget.take())
    assert len(delays) > 25
    assert all(delay is not None and 0.125 <= delay <= 0.375 for delay in delays)


@pytest.mark.parametrize("window", [0, 60])
def test_no_restart_is_allowed(window: float) -> None:
    """Of a limit of 0."""
    assert RestartBudget(0, window).take() is None
