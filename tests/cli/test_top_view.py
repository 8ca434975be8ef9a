"""What `rbee top` computes from two samples of a server, and how it draws it: the numbers are known."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from rbee.top import view
from rbee.top.interval import EVENTS, Interval
from rbee.transport import Histogram, Observer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.observed import ObservedServer


def measure(server: ObservedServer, act: Callable[[], None]) -> Interval:
    """The interval of half a second in which `act()` happened."""
    with Observer(server.pid()) as observer:
        before = observer.sample()
        act()
        now = observer.sample()
    assert before is not None
    assert now is not None
    return Interval.between(before, now, 0.5)


def drawn(interval: Interval | None, server: int) -> list[str]:
    """The lines of the view on a terminal with 80 columns, without colours."""
    capture = io.StringIO()
    console = Console(file=capture, width=80, highlight=False, markup=False)
    console.print(view.draw(interval, server))
    return [line.rstrip() for line in capture.getvalue().splitlines()]


def test_rates_are_those_of_the_interval(server):
    """What happened before the interval has no part in a rate, but in the sum since the epoch's start."""
    server.step(100, 1_000_000)

    def act():
        server.step(10, 1_000_000)
        server.step(20, 3_000_000)

    shown = measure(server, act).as_json()
    assert shown["per_second"]["tokens"] == 60
    assert shown["per_second"]["steps"] == 4
    assert shown["since_epoch_start"]["tokens"] == 130
    assert shown["since_epoch_start"]["python_tokens"] == 130
    assert shown["step_us"]["count"] == 2
    assert shown["step_us"]["p50"] == pytest.approx(1000, rel=1 / 16)
    assert shown["step_us"]["p99"] == pytest.approx(3000, rel=1 / 16)
    assert shown["loop_lag_us"]["max"] == pytest.approx(20, rel=1 / 16)
    assert shown["delivery_us"] == {"count": 0, "p50": None, "p99": None, "p999": None, "max": None}
    assert shown["per_second"]["wakes_written"] + shown["per_second"]["wakes_elided"] == 4
    assert shown["gc_pause_mean_us"] == 3000
    assert (shown["streams"], shown["sequences_running"], shown["sequences_waiting"]) == (1, 3, 2)
    assert (shown["kv_blocks_used"], shown["kv_blocks"]) == (1024, 4096)
    assert (shown["server_pid"], shown["epoch"], shown["engine_state"]) == (server.pid(), 1, "stepping")
    assert shown["server_state"] == "loading"
    assert 0 <= shown["server_silence_s"] <= shown["engine_silence_s"]


def test_histograms_have_their_unit(server):
    """A time is shown in microseconds, a number of tokens as it is."""
    interval = measure(server, lambda: None)
    three = Histogram((0, 0, 0, 1) + (0,) * 572)
    counted = dict.fromkeys(interval.histograms, three)
    shown = dataclasses.replace(interval, histograms=counted).as_json()
    assert shown["request_prompt_tokens"] == {"count": 1, "p50": 4, "p99": 4, "p999": 4, "max": 4}
    assert shown["queue_time_us"] == {"count": 1, "p50": 0.004, "p99": 0.004, "p999": 0.004, "max": 0.004}


def test_nothing_has_no_rate_and_no_percentile(server):
    """An interval in which nothing happened is zeros and nulls, not a division by zero."""
    shown = measure(server, lambda: None).as_json()
    assert set(shown["per_second"].values()) == {0}
    assert (shown["wakes_elided_share"], shown["gc_pause_mean_us"]) == (None, None)
    assert shown["prompt_cached_share"] is None
    assert (shown["engine_silence_s"], shown["engine_state"]) == (None, "starting")


def test_a_new_epoch_counts_from_zero(server):
    """Where the second sample is of a later epoch, the first one is not subtracted from it."""
    server.step(100, 1_000_000)

    def restart():
        server.start_engine(2)
        server.step(10, 1_000_000)

    interval = measure(server, restart)
    assert (interval.now.epoch, interval.rate("tokens"), interval.histograms["step"].count) == (2, 20, 1)


def changed(server: ObservedServer, *, taken_ns: int | None = None, **counters: int) -> Interval:
    """An interval at whose end, `taken_ns`, the counters of the server's arena are these."""
    with Observer(server.pid()) as observer:
        sample = observer.sample()
    assert sample is not None
    now = dataclasses.replace(
        sample,
        taken_ns=sample.taken_ns if taken_ns is None else taken_ns,
        counters=sample.counters | counters,
    )
    return Interval.between(sample, now, 1.0)


def test_view_says_what_was_measured(server):
    """Each number stands beside its name."""
    text = "\n".join(drawn(measure(server, lambda: server.step(40, 12_000_000, 12_000_000)), server.pid()))
    for pattern in (
        rf"rbee top  server {server.pid()}  engine \d+  epoch 1  stepping",
        r"heartbeats  engine: .* s.*  server: .* s",
        r"streams +1\n",
        r"sequences +3 running, 2 waiting\n",
        r"KV cache .* 1,024 of 4,096 blocks, 25.0%",
        r"step +1[12]\.\d ms +1[12]\.\d ms +1[12]\.\d ms +1[12]\.\d ms +2\n",
        r"wakeup +[\d.]+ .s .* 1\n",
        r"event-loop lag +(\d\d\.\d us +){4}1\n",
        r"delivery +- +- +- +- +0\n",
        r"tokens +80.0 +40 ",
        r"rendered in Python +80.0 +40\n",
        r"gc pauses, 3.0 ms +2.0 +1\n",
        r"Rates and durations of the last 0.5 s; durations are known to 1/16.",
    ):
        assert re.search(pattern, text), f"{pattern} is not in:\n{text}"


def test_share_of_cached_prompt_tokens(server):
    """What the prefix cache had of the interval's prompts stands beside them."""
    server.step(1, 1_000_000)
    interval = changed(server, prompt_tokens=407, cached_prompt_tokens=105)  # it has 7 and 5 before
    assert interval.as_json()["prompt_cached_share"] == 0.25
    assert re.search(r"cached tokens, 25% +100 +105", "\n".join(drawn(interval, 1)))


def test_view_fits_a_terminal(server):
    """All of it is within 80 columns and 24 lines, with nothing cut off, also when the numbers are large."""
    most = {name: 2**32 - 1 for name in EVENTS if name != "python_tokens"}
    server.step(1000, 33_000_000_000)
    most |= {"engine_pid": 2**22, "tokens_drained": 2**50, "kv_blocks": 2**24, "kv_blocks_used": 2**24}
    interval = changed(server, **most)
    lines = drawn(interval, 2**22)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for words in ("wakes elided, 50%", "full-ring pauses", "16,777,216 of 16,777,216 blocks, 100.0%"):
        assert words in text
    assert re.search(r"tokens +4,294M +4,294M", text)
    assert re.search(r"rendered in Python +1,125T +1,125T", text)


def coloured(interval: Interval) -> str:
    """The view with its colours."""
    capture = io.StringIO()
    console = Console(file=capture, width=80, force_terminal=True, color_system="standard", highlight=False)
    console.print(view.draw(interval, 4711))
    return capture.getvalue()


def test_what_should_not_be_is_red(server):
    """A lost wakeup and silent processes are shown as warnings, and only then."""
    red = "\x1b[1;31m"
    server.step(1, 1_000_000)
    now = 3600 * 10**9
    alive = {"taken_ns": now, "engine_heartbeat_ns": now, "server_heartbeat_ns": now}
    assert red not in coloured(changed(server, **alive))
    assert f"{red}stale wakeups" in coloured(changed(server, **alive, stale_wakeups=1))
    long_step = alive | {"engine_heartbeat_ns": 1}
    assert red not in coloured(changed(server, **long_step, progress=1)), "a long step is no hang"
    text = coloured(changed(server, taken_ns=now, engine_heartbeat_ns=1, server_heartbeat_ns=1))
    assert re.search(re.escape(red) + r"  engine: silent for 3600\.0 s", text)
    assert re.search(re.escape(red) + r"  server: silent for 3600\.0 s", text)


def test_a_server_without_an_engine_is_a_sentence():
    """Between two engines there are no numbers, and the view says why."""
    assert drawn(None, 4711) == ["rbee top  server 4711  no engine: it is being replaced, or the server ends"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (99_999, "99,999"), (100_000, "100k"), (99_999_999, "99,999k"), (10**8, "100M")]
)
def test_quantities_stay_short(number, text):
    """A large number is cut down to what a column holds, and says so with its unit."""
    assert view.quantity(number) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [(None, "-"), (400, "0.4 us"), (99_960, "100 us"), (999_400, "999 us"), (999_600, "1.0 ms"), (2.5e9, "2.5 s")],
)
def test_durations_have_the_unit_that_fits(ns, text):
    """Two or three digits, and never four."""
    assert view.duration(ns) == text
