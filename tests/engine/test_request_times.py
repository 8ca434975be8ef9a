"""The times and sizes of sequences that the engine counts in its arena; the test's clock decides every duration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.transport import _native  # noqa: TID251 - what the arena holds
from tests.engine.engine_parts import InProcessEngine, synthetic

if TYPE_CHECKING:
    from collections.abc import Iterable

BOUNDS = _native.histogram_bounds()
TIMES = ("queue_time", "prefill_time", "decode_time", "inference_time")
ALL = (*TIMES, "request_prompt_tokens", "request_generation_tokens")


def counted(engine: InProcessEngine) -> dict[str, list[int]]:
    """The values of each histogram, in order; below 32 they are exact."""
    *_, histograms = _native.observe(engine.rings.arena.buffer.toreadonly())
    return {
        name: [start for start, count in zip(BOUNDS, histograms[name], strict=True) for _ in range(count)]
        for name in ALL
    }


def step_at(engine: InProcessEngine, *times_ns: int) -> None:
    """A step at each of these times."""
    for engine.now_ns in times_ns:
        assert engine.core.step()
        engine.rings.drain()


def expected(*values: Iterable[int]) -> dict[str, list[int]]:
    """In the order of ALL."""
    return {name: list(group) for name, group in zip(ALL, values, strict=True)}


def test_each_time_is_counted_when_it_has_passed():
    """Received at 3, admitted at 5, three steps of prompt, first token at 12, last of three tokens at 20."""
    with InProcessEngine(synthetic(), max_num_batched_tokens=4) as engine:
        engine.submit(list(range(10)), received_ns=3, max_tokens=3)
        step_at(engine, 5)
        assert counted(engine) == expected([2], [], [], [], [], [])
        step_at(engine, 9, 12)
        assert counted(engine) == expected([2], [7], [], [], [], [])
        step_at(engine, 14, 20)
        assert counted(engine) == expected([2], [7], [8], [15], [10], [3])


def test_single_token_takes_no_time_to_decode():
    """Its first token is its end."""
    with InProcessEngine(synthetic()) as engine:
        engine.submit([1], received_ns=1, max_tokens=1)
        step_at(engine, 4)
        assert counted(engine) == expected([3], [0], [0], [0], [1], [1])


def test_waiting_for_a_seat_is_queue_time():
    """The second of two sequences, where one can run; each token of the first takes 2 ns."""
    with InProcessEngine(synthetic(), max_num_seqs=1) as engine:
        engine.submit([1, 2], received_ns=1, max_tokens=3)
        engine.submit([1, 2, 3], received_ns=2, max_tokens=1)
        step_at(engine, 10, 12, 14, 16)
        assert counted(engine) == expected([9, 14], [0, 0], [0, 4], [0, 4], [2, 3], [1, 3])


def test_what_ends_in_the_queue_counts_nowhere():
    """It was never admitted."""
    with InProcessEngine(synthetic(), max_num_seqs=1) as engine:
        engine.submit([1], received_ns=1, max_tokens=2)
        waiting = engine.submit([1], received_ns=1)
        step_at(engine, 5)
        engine.rings.consumer.cancel(waiting.ring)
        step_at(engine, 6)
        engine.run()
        engine.assert_at_baseline()
        assert counted(engine) == expected([4], [0], [1], [1], [1], [2])


def test_what_ends_within_its_prompt_has_no_first_token():
    """It waited and was computed in vain, and that counts."""
    with InProcessEngine(synthetic(), max_num_batched_tokens=4) as engine:
        request = engine.submit(list(range(20)), received_ns=1)
        step_at(engine, 2, 4)
        engine.rings.consumer.cancel(request.ring)
        engine.now_ns = 9
        engine.run()
        engine.assert_at_baseline()
        assert counted(engine) == expected([1], [], [], [7], [20], [0])


def test_preempted_sequence_is_admitted_once():
    """The wait for its blocks after a preemption is a part of its prefill or decode time."""
    with InProcessEngine(synthetic(), num_blocks=8) as engine:
        lengths = [2, 10, 24, 40, 66]
        for length in lengths:
            engine.submit(list(range(length)), max_tokens=30)
        engine.run()
        assert engine.scheduler.num_preemptions > 0
        times = counted(engine)
        assert {name: len(values) for name, values in times.items()} == dict.fromkeys(ALL, len(lengths))


def test_refused_submission_counts_nowhere():
    """It has no sequence."""
    with InProcessEngine(synthetic()) as engine:
        engine.submit([], received_ns=1)
        engine.now_ns = 3
        engine.run()
        assert counted(engine) == expected([], [], [], [], [], [])
