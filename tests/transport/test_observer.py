"""Looking at an arena from outside: what is found, what a sample says, and that the observed side takes no part."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rbee.errors import TransportError
from rbee.transport import Arena, Histogram, Observer, bucket_start_near, find_servers
from tests.observed import observed_server


@pytest.fixture
def server():
    """A process without an arena."""
    with observed_server() as server:
        yield server


@pytest.fixture
def observer(server):
    """An observer of it, after it has got one."""
    server.start_engine(1)
    with Observer(server.pid()) as observer:
        yield observer


def sound_content(epoch):
    """The bytes of a fresh arena."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=epoch)
    arena.unlink()
    content = bytes(arena.buffer)
    arena.close()
    return content


def found(server):
    """What a search says of this server."""
    [found] = [found for found in find_servers() if found.pid == server.pid()]
    return found


def test_sample_equals_the_counters(server, observer):
    """A sample has every counter by its name, and the same values that the server's own side reads."""
    server.step(7, 1_000_000)
    server.cancel()
    sample = observer.sample()
    assert sample.counters == server.counters()
    assert (sample.counters["tokens"], sample.counters["steps"], sample.counters["cancels"]) == (7, 1, 1)
    assert (sample.epoch, sample.server_pid) == (1, server.pid())
    assert 0 < sample.counters["engine_heartbeat_ns"] <= sample.counters["server_heartbeat_ns"] <= sample.taken_ns


def test_observing_changes_not_one_byte(server, observer):
    """The arena is the same to the byte before and after a thousand samples; nothing was drained, nobody rang."""
    server.step(3)
    before = server.content()
    drains = observer.sample().counters["drains"]
    for _ in range(1000):
        observer.sample()
    assert server.content() == before
    assert observer.sample().counters["drains"] == drains == 1
    assert not server.rung()


def test_an_arena_is_found_while_it_has_a_name():
    """Also before the engine has attached, when the segment is still listed in /dev/shm."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=3)
    with Observer(os.getpid()) as observer:
        assert observer.epoch == 3
    arena.unlink()
    arena.close()


def test_the_mapping_is_read_only(synthetic_server):
    """The kernel lets no observer write: the pages are mapped, and the descriptor is open, for reading only."""
    with Observer(synthetic_server.pid):
        mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        ours = [fields[1] for fields in mappings if f"/dev/shm/rbee-{synthetic_server.pid}-" in " ".join(fields)]
        assert ours == ["r--s"]
        for descriptor in Path("/proc/self/fd").iterdir():  # the mapping keeps one, and only as it was opened
            with contextlib.suppress(FileNotFoundError):
                if f"/dev/shm/rbee-{synthetic_server.pid}-" in str(descriptor.readlink()):
                    assert fcntl.fcntl(int(descriptor.name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def test_observer_gives_back_what_it_took(server, observer):
    """After close() no descriptor and no mapping is left; a second call does nothing."""
    observer.close()
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - names are what is compared
    another = Observer(server.pid())
    another.sample()
    another.close()
    another.close()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    assert f"rbee-{server.pid()}-" not in Path("/proc/self/maps").read_text()


def test_the_newest_epoch_is_followed(server, observer):
    """A new arena takes over as soon as it is there, and the end of the old one is of no importance then."""
    server.step(5)
    assert observer.sample().counters["tokens"] == 5
    server.start_engine(2)
    sample = observer.sample()
    assert (sample.epoch, observer.epoch, sample.counters["tokens"]) == (2, 2, 0)
    server.stop_engine()
    server.step(2)
    assert observer.sample().counters["tokens"] == 2


def test_between_two_engines_there_is_no_sample(server, observer):
    """While the server has no arena a sample is None; with the next one they go on."""
    server.stop_engine()
    assert observer.sample() is None
    assert not observer.wait(0)
    server.start_engine(2)
    assert observer.sample().epoch == 2


def test_end_of_the_server_is_noticed(start_server):
    """wait() returns at once when the server ends, even killed; then there are no samples any more."""
    with start_server("--model", "synthetic") as server, Observer(server.pid) as observer:
        assert not observer.wait(0)
        server.process.kill()
        assert observer.wait(60)
        assert observer.sample() is None


def test_search_finds_a_server(server):
    """With its pid, its command line and its newest epoch."""
    server.start_engine(1)
    server.start_engine(2)
    assert (found(server).epoch, found(server).problem) == (2, "")
    assert "python" in found(server).command


def test_the_engine_is_not_taken_for_a_server(synthetic_server):
    """It holds the segment too, but did not create it."""
    pids = [found.pid for found in find_servers()]
    assert synthetic_server.pid in pids
    assert synthetic_server.engine.pid not in pids


@pytest.mark.parametrize("option", [["--api-key", "s3cret"], ["--api-key=s3cret"]])
def test_api_keys_are_not_shown(start_server, option):
    """The command line is shown without its secrets."""
    with start_server("--model", "synthetic", *option) as server:
        [command] = [found.command for found in find_servers() if found.pid == server.pid]
    assert "--model synthetic --api-key" in command
    assert "s3cret" not in command


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be mapped"),
        (b"rbee_shm", "holds 8 bytes"),
        (bytes(65536), "not an rbee arena"),
        (b"rbee_shm\x63".ljust(65536, b"\0"), "layout version 99"),
    ],
)
def test_a_segment_that_is_no_arena_is_named(server, content, reason):
    """What only looks like an arena is refused with its name and the reason, and so does a search."""
    name = server.hold_segment(content)
    with pytest.raises(TransportError, match=rf"{name}, which cannot be observed: .*{reason}"):
        Observer(server.pid())
    assert found(server).epoch is None
    assert reason in found(server).problem


def test_an_unsound_segment_does_not_hide_the_sound_one(server, observer):
    """Beside it the arena goes on being observed; and what was not finished is taken once it is sound and newer."""
    server.hold_segment(bytes(len(sound_content(2))))
    assert observer.sample().epoch == 1
    assert found(server).epoch == 1
    server.change_segment(sound_content(2))
    assert observer.sample().epoch == 2


def test_damage_is_an_error_and_not_a_number(server, observer):
    """An arena whose header is overwritten later is not read on."""
    server.damage()
    with pytest.raises(TransportError, match="not an rbee arena"):
        observer.sample()


def test_a_process_without_an_arena_is_no_server():
    """The sentence names the process."""
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        pytest.raises(TransportError, match=f"Process {process.pid} has no arena"),
    ):
        Observer(process.pid)


def test_a_process_that_is_gone_is_a_sentence():
    """Nothing to observe behind a pid whose process has been waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(TransportError, match=f"Process {process.pid} cannot be observed"):
        Observer(process.pid)


STRANGER = """
import os, sys
from rbee.errors import TransportError
from rbee.transport import Observer, find_servers
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
pid = int(sys.argv[1])
assert pid not in [server.pid for server in find_servers()]
try:
    Observer(pid)
except TransportError as error:
    print(error)
"""
GUARDED = """
import ctypes
PR_SET_DUMPABLE = 4
assert ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0
print(flush=True)
input()
"""


def test_somebody_elses_process_cannot_be_observed():
    """Without the right to look, the sentence says who has it; a search passes over such processes."""
    with subprocess.Popen(
        [sys.executable, "-c", GUARDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as guarded:
        guarded.stdout.readline()
        stranger = subprocess.run(
            [sys.executable, "-c", STRANGER, str(guarded.pid)], capture_output=True, text=True, timeout=60, check=True
        )
    assert "A server can be observed by the user who runs it, and by root." in stranger.stdout


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles_agree_with_numpy(server, observer, fraction):
    """Of durations between nanoseconds and half a minute, each quantile is within 1/16 of what the values say."""
    random = np.random.default_rng(7)
    values = np.concatenate([random.lognormal(12, 4, 3000), random.integers(0, 40, 300)]).astype(np.int64)
    values = values[values < 34_000_000_000]
    server.lag(*values.tolist())
    histogram = observer.sample().histograms["loop_lag"]
    exact = np.quantile(values, fraction, method="inverted_cdf")
    assert histogram.count == len(values)
    assert abs(histogram.quantile(fraction) - exact) <= max(1, exact / 16)


def test_quantiles_of_a_difference_are_those_of_the_interval(server, observer):
    """What was counted before the interval has no part in it."""
    server.step(1, *[5_000_000] * 1000)
    before = observer.sample().histograms["step"]
    values = np.arange(10_000, 20_000, 10)
    server.step(1, *values.tolist())
    steps = observer.sample().histograms["step"].minus(before)
    assert steps.count == len(values)
    for fraction in (0.5, 0.99, 1.0):
        exact = np.quantile(values, fraction, method="inverted_cdf")
        assert abs(steps.quantile(fraction) - exact) <= exact / 16


def test_quantiles_at_the_edges(server, observer):
    """Of nothing there is none; the last bucket, which has no end, answers with its start; within one, it is linear."""
    assert observer.sample().histograms["loop_lag"].quantile(0.5) is None
    server.lag(2**63)
    assert observer.sample().histograms["loop_lag"].quantile(0.5) == 532_575_944_704
    assert Histogram((0, 0, 4) + (0,) * 573).quantile(0.25) == 2.25


def test_durations_below_a_bound_are_exact(server, observer):
    """If the bound is the start of a bucket: one nanosecond less counts, the bound itself does not."""
    bounds = [bucket_start_near(ns) for ns in (1_000, 50_000, 2_000_000_000, 10**15)]
    assert bounds[0] == 992
    server.lag(*(duration for bound in bounds for duration in (bound - 1, bound)))
    assert observer.sample().histograms["loop_lag"].below(bounds) == [1, 3, 5, 7]


def test_sum_is_known_to_1_32(server, observer):
    """Whatever the durations; small ones exactly."""
    durations = [int(ns) for ns in np.random.default_rng(7).lognormal(np.log(1e6), 3, 1000)]
    server.lag(*durations)
    assert observer.sample().histograms["loop_lag"].total == pytest.approx(sum(durations), rel=1 / 32)
    assert Histogram(tuple([0] * 3 + [2] + [0] * 9 + [1])).total == 2 * 3 + 13
