"""When an engine hangs, by what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.server.link.watchdog import PERIOD, Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT = 100 * PERIOD


def first_hang(looks: Iterable[tuple[tuple[int, int], float]]) -> int | None:
    """The first of these looks, (heartbeat, progress) and time, at which the engine hangs."""
    watchdog = Watchdog(TIMEOUT)
    return next((index for index, (signs, now) in enumerate(looks) if watchdog.hangs(signs, now)), None)


def test_silence_is_a_hang() -> None:
    """When it has lasted for the timeout, and not one look earlier; of a new engine too."""
    assert first_hang(((7, 7), 5.0 + PERIOD * look) for look in range(200)) in (100, 101)
    assert first_hang(((min(look, 50), 7), PERIOD * look) for look in range(200)) in (150, 151)


def test_each_word_is_a_sign_of_life() -> None:
    """A heartbeat between steps, or progress within a step that takes longer than the timeout."""
    assert first_hang(((look // 90, 0), PERIOD * look) for look in range(1000)) is None
    assert first_hang(((0, look // 90), PERIOD * look) for look in range(1000)) is None


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """A suspended machine, or a stopped server, comes back an hour later."""
    looks = [((0, 0), PERIOD * look) for look in range(50)]
    looks += [((0, 0), 3600 + PERIOD * look) for look in range(100)]
    assert first_hang(looks) in range(97, 101)
