"""Rows shared among a pool's threads come out as in one thread, and the engine has its runner's threads sample them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rbee.engine.sampler import Row, Sampled, Scored, ThreadPool, sample, score
from tests.engine.engine_parts import PATIENCE, InProcessEngine, ScriptedRunner
from tests.engine.sampling_reference import row

if TYPE_CHECKING:
    from collections.abc import Callable

VOCAB_SIZE = 3_000


def step(number: int, size: int) -> tuple[np.ndarray, list[Row]]:
    """Logits of so many rows, and rows with different parameters; one in ten is not valid."""
    random = np.random.default_rng(number)
    logits = random.normal(0, 3, (size, VOCAB_SIZE)).astype(np.float32)
    logits[random.random(size) < 0.1, 17] = np.nan
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"top_k": 50, "top_p": 0.9},
        {"typical_p": 0.9, "num_logprobs": 3},
        {"repetition_penalty": 1.3, "min_p": 0.01, "num_logprobs": 0},
    ]
    prompt = random.integers(0, VOCAB_SIZE, 100).tolist()
    return logits, [row(seed=seed, prompt=prompt, **kinds[random.integers(len(kinds))]) for seed in range(size)]


def equal(one: Sampled | Scored, other: Sampled | Scored) -> bool:
    """Equal bit for bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("portable", [False, True])
def test_sampled_rows_do_not_depend_on_threads(threads, portable):
    """Whatever the numbers of rows and threads, every row is what it is in one thread, bit for bit."""
    pool = ThreadPool(threads)
    for number, size in enumerate([0, 1, 2, 3, 40, 64]):
        logits, rows = step(number, size)
        alone = sample(logits, rows, portable=portable)
        for _ in range(5):
            assert equal(sample(logits, rows, pool=pool, portable=portable), alone)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("portable", [False, True])
def test_scored_rows_do_not_depend_on_threads(threads, portable):
    """The same for the logprobs of given tokens."""
    pool = ThreadPool(threads)
    for number, size in enumerate([0, 1, 2, 3, 40, 64]):
        logits, _ = step(number, size)
        tokens = np.arange(size, dtype=np.uint32) * 40
        alone = score(logits, tokens, 5, portable=portable)
        for _ in range(5):
            assert equal(score(logits, tokens, 5, pool=pool, portable=portable), alone)


def test_callers_share_a_pool():
    """Several threads that sample on one pool at the same time get what they would get alone."""
    pool = ThreadPool(2)
    steps = [step(number, 20) for number in range(8)]
    alone = [sample(*one) for one in steps]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(10):
            results = callers.map(lambda one: sample(*one, pool=pool), steps)
            assert all(equal(result, expected) for result, expected in zip(results, alone, strict=True))


def test_a_pool_has_a_sensible_number_of_threads():
    """A number that is none is refused with a sentence that names it."""
    assert ThreadPool(1).threads == 1
    assert ThreadPool(3).threads == 3
    for threads in (0, 1025):
        with pytest.raises(ValueError, match=f"threads is {threads}, but must be between 1 and 1024"):
            ThreadPool(threads)


class Worker:
    """The thread of a pool of two that is not its caller, as the kernel sees it."""

    def __init__(self) -> None:
        tasks = Path("/proc/self/task")
        before = set(tasks.iterdir())
        self.pool = ThreadPool(2)
        (self._task,) = set(tasks.iterdir()) - before

    def wait_until_asleep(self) -> int:
        """It sleeps once it has found nothing to do for a while. Returns how often it has gone to sleep."""
        self._wait_for(lambda: (self._task / "stat").read_text().rpartition(") ")[2].startswith("S"))
        return self._sleeps()

    def wait_until_woken(self, sleeps: int) -> None:
        """Wait until it has been awake since then, and sleeps once more."""
        self._wait_for(lambda: self._sleeps() > sleeps)

    def _sleeps(self) -> int:
        lines = (self._task / "status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("voluntary_ctxt_switches:"))
        return int(line.split()[1])

    @staticmethod
    def _wait_for(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            time.sleep(0)


@pytest.mark.parametrize(
    ("requests", "options"), [(2, {}), (1, {"num_prompt_logprobs": 2})], ids=["sampled rows", "scored rows"]
)
def test_the_engine_shares_rows_among_its_runners_threads(requests, options):
    """A step with several rows to sample, or to score, wakes the runner's threads, and its tokens are right."""
    worker = Worker()
    runner = ScriptedRunner()
    runner.pool = worker.pool
    with InProcessEngine(runner) as engine:
        asked = [engine.submit([3, 4, 5, 10 + number], max_tokens=3, **options) for number in range(requests)]
        sleeps = worker.wait_until_asleep()
        engine.core.step()
        worker.wait_until_woken(sleeps)
        engine.run()
        assert [request.tokens[-3:] for request in asked] == [[11 + n, 12 + n, 13 + n] for n in range(requests)]
