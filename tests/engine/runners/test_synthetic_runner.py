"""The synthetic model's pace and its limits; its tokens are tested through the core."""

from __future__ import annotations

import array

import pytest

from rbee.engine.input_batch import InputBatch
from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.synthetic import SyntheticRunner
from rbee.engine.scheduling.scheduler import Scheduled
from rbee.engine.scheduling.sequence import Sequence
from rbee.errors import ConfigError
from rbee.sampling_params import SamplingParams

MS = 1_000_000
SMALL = CacheSize(block_size=16, kv_cache_mib=1)


class Clock:
    """A clock that moves only when somebody sleeps or says so."""

    def __init__(self) -> None:
        self.now = 10_000 * MS

    def sleep(self, seconds: float) -> None:
        """Move by exactly this."""
        self.now += round(seconds * 1e9)


def a_batch() -> InputBatch:
    """One decoding row."""
    sequence = Sequence("r", 0, (0, 0), array.array("I", [1]), SamplingParams(max_tokens=9))
    sequence.block_table.append(0)
    return InputBatch.build([Scheduled(sequence, 1)], 16)


def test_steps_keep_a_fixed_cadence():
    """Steps end every 10 ms whatever happens between them; being late shifts no later step; idling starts anew."""
    clock = Clock()
    runner = SyntheticRunner(SMALL, step_seconds=0.01, now_ns=lambda: clock.now, sleep=clock.sleep)
    start, ends = clock.now, []
    for work_ms in (0, 3, 9, 14, 0, 500, 2):
        clock.now += work_ms * MS
        runner.execute(a_batch())
        ends.append((clock.now - start) / MS)
    assert ends == [10, 20, 30, 44, 50, 560, 570]


def test_progress_is_reported_once_a_step():
    """A step has one chunk of work, and its report comes before the wait for the step's end."""
    events: list[str] = []
    runner = SyntheticRunner(
        SMALL, step_seconds=0.01, on_progress=lambda: events.append("progress"), sleep=lambda _: events.append("sleep")
    )
    for _ in range(2):
        runner.execute(a_batch())
    assert events == ["progress", "sleep"] * 2


@pytest.mark.parametrize(("max_model_len", "kv_cache_mib"), [(8193, 64), (2000, 1)])
def test_length_that_does_not_fit_is_refused(max_model_len, kv_cache_mib):
    """More than the model takes, or than the cache holds, is a sentence that names both."""
    with pytest.raises(ConfigError, match=r"8192 tokens, and --kv-cache-mib .* holds"):
        SyntheticRunner(
            CacheSize(block_size=16, kv_cache_mib=kv_cache_mib, max_model_len=max_model_len), step_seconds=0
        )


def test_small_cache_lowers_the_length():
    """Without a wish max_model_len is what one sequence can have; a token counts 1 KiB."""
    runner = SyntheticRunner(SMALL, step_seconds=0)
    assert (runner.num_blocks, runner.max_model_len) == (64, 1024)
