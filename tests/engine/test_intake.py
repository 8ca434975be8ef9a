"""What comes from outside between two steps: submissions, cancels, deadlines, and readers that are too slow."""

from __future__ import annotations

import gc

import pytest

from rbee.engine.intake import Live
from rbee.messages import SIDE_RECORD, FinishReason
from rbee.models.synthetic import expected_tokens
from tests.engine.engine_parts import InProcessEngine, ScriptedRunner, synthetic


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [([], {}), ([1] * 128, {}), ([64], {}), ([1], {"temperature": float("nan")}), ([1], {"max_tokens": 0})],
    ids=["empty", "too long", "no such token", "temperature", "max_tokens"],
)
def test_request_that_cannot_run_ends_with_error(prompt, sampling):
    """A request that the server should have refused ends with ERROR and no token; the one beside it is served."""
    with InProcessEngine(ScriptedRunner()) as engine:
        bad = engine.submit(prompt, **sampling)
        good = engine.submit([1])
        engine.run()
        assert (bad.tokens, bad.finish) == ([], FinishReason.ERROR)
        assert (good.tokens, good.finish) == ([2, 3, 4, 5, 6, 7, 8, 9], FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_cancel_takes_effect_before_the_next_step():
    """A cancelled request gets ABORT and not one token more, wherever it is; its blocks are free at once."""
    with InProcessEngine(ScriptedRunner(), max_num_batched_tokens=16, max_num_seqs=2) as engine:
        decoding = engine.submit([1], max_tokens=100)
        engine.core.step()
        in_prefill = engine.submit([1] * 40)
        in_queue = engine.submit([2] * 40)
        engine.core.step()
        assert engine.core.gauges().sequences_waiting == 1
        for request in (decoding, in_prefill, in_queue):
            engine.rings.consumer.cancel(request.ring)
        engine.run()
        assert [request.finish for request in (decoding, in_prefill, in_queue)] == [FinishReason.ABORT] * 3
        assert [len(request.tokens) for request in (decoding, in_prefill, in_queue)] == [2, 0, 0]
        engine.assert_at_baseline()


def test_cancel_that_comes_with_its_submission_is_obeyed():
    """A request cancelled before the engine took it ends with ABORT without ever running."""
    runner = ScriptedRunner()
    with InProcessEngine(runner) as engine:
        request = engine.submit([1])
        engine.rings.consumer.cancel(request.ring)
        engine.run()
        assert (request.tokens, request.finish) == ([], FinishReason.ABORT)
        assert runner.batches == []


def test_cancel_of_a_request_that_is_refused_changes_nothing():
    """A request that cannot run and is cancelled before the engine took it ends once, with ERROR."""
    with InProcessEngine(ScriptedRunner()) as engine:
        request = engine.submit([])
        engine.rings.consumer.cancel(request.ring)
        engine.run()
        assert request.finish == FinishReason.ERROR
        engine.assert_at_baseline()


def test_full_ring_pauses_its_sequence_alone():
    """A reader that does not read stops only its own sequence; reading again continues it without a gap."""
    with InProcessEngine(synthetic(), ring_capacity=8) as engine:
        slow, fast = engine.submit([1], max_tokens=30), engine.submit([2], max_tokens=30)
        engine.rings.consumer.pause(slow.ring)
        for _ in range(30):
            assert engine.core.step()
            engine.rings.drain()
        assert fast.tokens == expected_tokens([2], 30)
        assert not engine.core.step(), "the only sequence left has no space"
        engine.rings.consumer.resume(slow.ring)
        engine.rings.drain()
        assert slow.tokens == expected_tokens([1], 8)
        engine.run()
        assert slow.tokens == expected_tokens([1], 30)
        engine.assert_at_baseline()


@pytest.mark.parametrize("num_blocks", [None, 2], ids=["with its blocks", "preempted"])
def test_reader_that_stays_too_slow_is_given_up(num_blocks):
    """After slow_reader_timeout with a full ring its sequence ends with SLOW_READER and is freed; the other goes on."""
    options = {"ring_capacity": 8, "slow_reader_timeout": 1.5, "num_blocks": num_blocks}
    with InProcessEngine(synthetic(), **options) as engine:
        slow = engine.submit([1], max_tokens=30)
        engine.rings.consumer.pause(slow.ring)
        for _ in range(8):
            assert engine.core.step()
        engine.now_ns = 10**9  # the clock starts when the ring is seen to be full, not when the request came
        assert not engine.core.step()
        engine.now_ns += 1_499_999_999
        assert not engine.core.step()
        fast = engine.submit([2], max_tokens=20)
        for _ in range(18):
            assert engine.core.step()
            engine.rings.drain()
        engine.now_ns += 1
        assert engine.core.step()
        gauges = engine.core.gauges()
        assert (gauges.sequences_running, gauges.sequences_waiting) == (1, 0)
        assert gauges.preemptions == (0 if num_blocks is None else 1)
        engine.rings.consumer.resume(slow.ring)
        engine.run()
        assert (slow.tokens, slow.finish) == (expected_tokens([1], 8), FinishReason.SLOW_READER)
        assert (fast.tokens, fast.finish) == (expected_tokens([2], 20), FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_reader_that_is_slow_again_and_again_is_not_given_up():
    """Only a ring that is full without a break counts: one token read in time is time anew."""
    with InProcessEngine(synthetic(), ring_capacity=8, slow_reader_timeout=1.0) as engine:
        slow = engine.submit([1], max_tokens=100)
        while not slow.finish:
            while engine.core.step():
                pass
            engine.now_ns += 999_999_999
            assert not engine.core.step()
            engine.rings.drain()
        assert (slow.tokens, slow.finish) == (expected_tokens([1], 100), FinishReason.LENGTH)


def test_end_all_ends_everything_that_lives():
    """Running, waiting and only submitted requests all get the reason."""
    with InProcessEngine(ScriptedRunner(), max_num_seqs=1) as engine:
        requests = [engine.submit([1], max_tokens=50), engine.submit([2], max_tokens=50)]
        engine.core.step()
        requests.append(engine.submit([3]))
        engine.core.end_all(FinishReason.ERROR)
        engine.rings.drain()
        assert [request.finish for request in requests] == [FinishReason.ERROR] * 3
        assert requests[0].tokens == [2]
        engine.assert_at_baseline()


def test_request_whose_records_can_never_fit_its_ring_ends_with_error():
    """A token's records are published in one step; a ring that is too small for them would wait for ever."""
    with InProcessEngine(ScriptedRunner(), ring_capacity=8) as engine:
        requests = [
            engine.submit([1], num_logprobs=7),
            engine.submit([1], num_logprobs=8),
            engine.submit([1, 2], num_logprobs=3, num_prompt_logprobs=4),
            engine.submit([1, 2], num_logprobs=3, num_prompt_logprobs=5),
        ]
        engine.run()
        assert [request.finish for request in requests] == [
            FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH, FinishReason.ERROR
        ]  # fmt: skip
        assert [len(request.tokens) for request in requests] == [64, 0, 5 + 32, 0]


def test_slow_reader_of_logprobs_pauses_before_its_ring_overflows():
    """A sequence samples only when its ring takes the token with all its side records."""
    with InProcessEngine(synthetic(), ring_capacity=8) as engine:
        request = engine.submit([1], max_tokens=9, num_logprobs=2)
        engine.rings.consumer.pause(request.ring)
        assert [engine.core.step() for _ in range(3)] == [True, True, False]  # 3 + 3 records, and 2 are left
        engine.rings.consumer.resume(request.ring)
        engine.rings.drain()
        engine.run()
        assert [token for token in request.tokens if not token & SIDE_RECORD] == expected_tokens([1], 9)


def test_deadline_ends_a_request_wherever_it_is():
    """At its deadline a request ends with what it has; one that is still queued has never run."""
    runner = ScriptedRunner()
    with InProcessEngine(runner, max_num_seqs=1) as engine:
        running = engine.submit([1], max_tokens=50, deadline_ns=100)
        queued = engine.submit([30], deadline_ns=99)
        patient = engine.submit([40], deadline_ns=1000)
        engine.core.step()
        engine.now_ns = 99
        engine.core.step()
        engine.rings.drain()
        assert (queued.tokens, queued.finish, running.finish) == ([], FinishReason.DEADLINE, None)
        engine.now_ns = 100
        engine.run()
        assert (running.tokens, running.finish) == ([2, 3], FinishReason.DEADLINE)
        assert (len(patient.tokens), patient.finish) == (8, FinishReason.LENGTH)
        assert not any(30 in batch.token_ids for batch in runner.batches)
        engine.now_ns = 1000
        assert not engine.core.step(), "a deadline means nothing to a request that has ended"
        engine.assert_at_baseline()


def test_deadline_of_a_sequence_without_blocks():
    """One that was preempted, and waits for blocks again, ends with the tokens that it had."""
    with InProcessEngine(synthetic(), num_blocks=2) as engine:
        first = engine.submit([1], max_tokens=20)
        preempted = engine.submit([2], max_tokens=20, deadline_ns=100)
        while not engine.scheduler.num_preemptions:
            assert engine.core.step()
        engine.now_ns = 100
        engine.run()
        assert (preempted.tokens, preempted.finish) == (expected_tokens([2], 16), FinishReason.DEADLINE)
        assert (first.tokens, first.finish) == (expected_tokens([1], 20), FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_deadline_of_a_sequence_that_is_held():
    """Its client is away: it ends all the same, and makes no step for others necessary."""
    with InProcessEngine(synthetic()) as engine:
        held = engine.submit([1], max_tokens=20, deadline_ns=100)
        for _ in range(3):
            assert engine.core.step()
        engine.core.hold(held.ring)
        assert not engine.core.step()
        engine.now_ns = 100
        engine.run()
        assert (held.tokens, held.finish) == (expected_tokens([1], 3), FinishReason.DEADLINE)
        engine.assert_at_baseline()


def test_requests_that_ended_are_not_kept_until_their_deadline():
    """Deadlines of the far future hold no memory of requests that are long over; those of live ones still count."""
    with InProcessEngine(ScriptedRunner()) as engine:
        patient = engine.submit([1], max_tokens=100, deadline_ns=50)
        for n in range(500):
            engine.submit([n % 60], max_tokens=1, deadline_ns=10**18)
            engine.core.step()
            engine.rings.drain()
            if n == 90:  # after they have been looked through
                engine.now_ns = 50
        assert sum(type(each) is Live for each in gc.get_objects()) < 100
        assert (len(patient.tokens), patient.finish) == (91, FinishReason.DEADLINE)
        last = engine.submit([1], max_tokens=100, deadline_ns=60)
        engine.core.step()
        engine.now_ns = 60
        engine.run()
        assert last.finish == FinishReason.DEADLINE


def test_deadline_that_passed_before_the_engine_took_the_request():
    """It ends at once, without a step of its own."""
    runner = ScriptedRunner()
    with InProcessEngine(runner) as engine:
        engine.now_ns = 100
        late = engine.submit([1], deadline_ns=100)
        engine.run()
        assert (late.tokens, late.finish, runner.batches) == ([], FinishReason.DEADLINE, [])
        engine.assert_at_baseline()


def test_urgent_request_overtakes_those_that_came_a_little_earlier():
    """A priority is worth ten seconds of arrival: it decides among neighbours in time, and not for ever."""
    with InProcessEngine(ScriptedRunner(), max_num_seqs=1) as engine:
        second = 10**9
        submissions = {"first": (0, 0), "urgent": (9, -1), "late": (11, -1), "patient": (1, 1)}
        requests = {
            name: engine.submit([1], max_tokens=1, received_ns=when * second, priority=priority)
            for name, (when, priority) in submissions.items()
        }
        order = []
        while engine.core.step():
            engine.rings.drain()
            order += [name for name, request in requests.items() if request.finish and name not in order]
        assert order == ["urgent", "first", "late", "patient"]


def test_number_of_cached_tokens_needs_its_place_in_the_ring():
    """It is published with the first token, and a ring that cannot take both is refused."""
    with InProcessEngine(synthetic(), ring_capacity=8) as engine:
        fits = engine.submit([1], max_tokens=1, report_cached=True, num_logprobs=6)
        too_many = engine.submit([1], max_tokens=1, report_cached=True, num_logprobs=7)
        gone = engine.submit([2], report_cached=True)
        engine.rings.consumer.cancel(gone.ring)
        engine.run()
        assert (len(fits.tokens), fits.finish) == (8, FinishReason.LENGTH)
        assert (too_many.tokens, too_many.finish) == ([], FinishReason.ERROR)
        assert (gone.tokens, gone.finish) == ([], FinishReason.ABORT)
        engine.assert_at_baseline()
