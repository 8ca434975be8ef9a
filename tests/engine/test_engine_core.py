"""EngineCore.step() over real rings, with the synthetic model or a scripted one."""

from __future__ import annotations

import gc
import itertools
import socket
import sys

import numpy as np
import pytest

from rbee.engine.intake import Live
from rbee.engine.process import Loop
from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.synthetic import SyntheticRunner
from rbee.engine.scheduling.step_cost import StepCost
from rbee.engine.step_clock import StepClock
from rbee.messages import SIDE_RECORD, FinishReason
from rbee.models.synthetic import expected_tokens
from rbee.transport.control import ControlChannel
from tests.engine.engine_parts import InProcessEngine, Request, ScriptedRunner


def synthetic() -> SyntheticRunner:
    """The synthetic model without waiting."""
    return SyntheticRunner(CacheSize(block_size=16, kv_cache_mib=64), step_seconds=0)


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 7}, {"num_blocks": 8}, {"max_num_seqs": 2}])
def test_every_request_gets_exactly_its_tokens(options):
    """Alone or crowded, with chunked prefill and preemption, each request gets its own sequence and then LENGTH."""
    with InProcessEngine(synthetic(), **options) as engine:
        prompts = [list(range(n, 3 * n)) for n in (1, 5, 12, 20, 33)]
        requests = [engine.submit(prompt, max_tokens=10 + n) for n, prompt in enumerate(prompts)]
        engine.run()
        for n, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
            assert request.tokens == expected_tokens(prompt, 10 + n)
            assert request.finish == FinishReason.LENGTH
        assert (engine.scheduler.num_preemptions > 0) == ("num_blocks" in options)
        engine.assert_at_baseline()


@pytest.mark.parametrize("sampling", [{"temperature": 1.5}, {"temperature": 1.0, "top_k": 5, "top_p": 0.5, "seed": 3}])
def test_synthetic_tokens_do_not_depend_on_sampling(sampling):
    """The synthetic model leaves the sampler no choice."""
    with InProcessEngine(synthetic()) as engine:
        request = engine.submit([1, 2, 3], **sampling)
        engine.run()
        assert request.tokens == expected_tokens([1, 2, 3], 8)
        assert np.isnan(request.logprobs).all()  # nobody asked for them


def test_stop_token_is_published_and_ends_the_sequence():
    """The first stop token is the last token, with STOP, also when it comes with the last token allowed."""
    with InProcessEngine(ScriptedRunner()) as engine:
        early = engine.submit([10], stop_token_ids=(13, 40))
        last = engine.submit([10], stop_token_ids=(13,), max_tokens=3)
        engine.run()
        assert early.tokens == last.tokens == [11, 12, 13]
        assert early.finish == last.finish == FinishReason.STOP


def test_sequence_ends_with_length_at_max_model_len():
    """Prompt plus output never exceeds max_model_len."""
    runner = ScriptedRunner()
    with InProcessEngine(runner) as engine:
        request = engine.submit([1] * (runner.max_model_len - 2), max_tokens=1000)
        engine.run()
        assert (len(request.tokens), request.finish) == (2, FinishReason.LENGTH)


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


def test_logits_that_are_not_numbers_end_only_their_request():
    """One row of NaN in the third step ends that request after two tokens; the others never notice."""

    def spoil(batch, logits):
        for row, sequence in enumerate(batch.row_sequences[: batch.num_sampling]):
            if sequence.num_prompt_tokens == 2 and sequence.num_output_tokens == 2:
                logits[row] = np.nan

    with InProcessEngine(ScriptedRunner(spoil)) as engine:
        others = [engine.submit([1]), engine.submit([1, 1, 1])]
        bad = engine.submit([1, 1])
        engine.run()
        assert (bad.tokens, bad.finish) == ([2, 3], FinishReason.ERROR)
        assert all(len(other.tokens) == 8 and other.finish == FinishReason.LENGTH for other in others)
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


def test_failed_step_ends_every_request_with_error(caplog):
    """When the model itself raises, all that lives gets ERROR, the log the traceback, the exit code is 1."""

    def fail(batch, _logits):
        if batch.row_sequences[0].num_output_tokens == 2:
            raise RuntimeError("the device is on fire")

    server_end, engine_end = socket.socketpair()
    with server_end, InProcessEngine(ScriptedRunner(fail), max_num_seqs=1) as engine:
        requests = [engine.submit([1]), engine.submit([2])]
        channel = ControlChannel(engine_end)
        assert Loop(channel, engine.producer, engine.core).run([]) == 1
        channel.close()
        engine.rings.drain()
        assert [(request.tokens, request.finish) for request in requests] == [
            ([2, 3], FinishReason.ERROR),
            ([], FinishReason.ERROR),
        ]
        engine.assert_at_baseline()
    assert "the device is on fire" in caplog.text


def records_of(request: Request) -> list[tuple[int, bool, float]]:
    """Each record as (token id, whether it is a side record, logprob to four places)."""
    return [
        (token & ~SIDE_RECORD, bool(token & SIDE_RECORD), round(logprob, 4))
        for token, logprob in zip(request.tokens, request.logprobs, strict=True)
    ]


LIKELY, OTHER = (round(float(x - np.log(np.exp(9) + 63)), 4) for x in (9, 0))
"""Logprobs of ScriptedRunner's one likely token and of any other."""


def test_logprobs_reach_the_ring():
    """A request that asks gets each token's logprob; with k, also side records of the k most likely; others NaN."""
    with InProcessEngine(ScriptedRunner()) as engine:
        chosen = engine.submit([1], max_tokens=2, num_logprobs=0)
        two = engine.submit([1], max_tokens=2, num_logprobs=2)
        none = engine.submit([1], max_tokens=2)
        engine.run()
        assert records_of(chosen) == [(2, False, LIKELY), (3, False, LIKELY)]
        first = [(2, False, LIKELY), (2, True, LIKELY), (0, True, OTHER)]
        assert records_of(two) == [*first, (3, False, LIKELY), (3, True, LIKELY), (0, True, OTHER)]
        assert none.tokens == [2, 3]
        assert np.isnan(none.logprobs).all()
        engine.assert_at_baseline()


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 5}, {"ring_capacity": 8}])
def test_prompt_is_scored_before_its_first_token(options):
    """Each prompt token but the first comes with its logprob and the most likely one, also in chunks; then output."""
    with InProcessEngine(synthetic(), **options) as engine:
        prompt = [7, 9, 9, 200, 3, 1, 1, 1, 1, 1, 40]
        request = engine.submit(prompt, max_tokens=3, num_prompt_logprobs=1, num_logprobs=0)
        beside = engine.submit([5], max_tokens=30)
        engine.run()
        expected = [(token, True, 0.0) for token in prompt[1:] for _ in range(2)]
        assert records_of(request) == expected + [(token, False, 0.0) for token in expected_tokens(prompt, 3)]
        assert beside.tokens == expected_tokens([5], 30)
        engine.assert_at_baseline()


def test_prompt_is_scored_once_whatever_happens():
    """A preemption in the middle of the prompt, and a prefix that is in the cache, change nothing of its scores."""
    with InProcessEngine(synthetic(), num_blocks=8, block_size=4, max_num_batched_tokens=6, max_num_seqs=3) as engine:
        prompt = list(range(20))
        earlier = engine.submit(prompt, max_tokens=2, received_ns=1)
        engine.run()
        older = [engine.submit([n], max_tokens=15, received_ns=2) for n in (50, 60)]
        request = engine.submit(prompt, max_tokens=2, num_prompt_logprobs=0, received_ns=3)
        engine.run()
        assert engine.scheduler.num_preemptions > 0
        assert request.tokens == [token | SIDE_RECORD for token in prompt[1:]] + expected_tokens(prompt, 2)
        assert (request.cached_tokens, earlier.finish) == (0, FinishReason.LENGTH)
        assert [other.tokens for other in older] == [expected_tokens([n], 15) for n in (50, 60)]
        engine.assert_at_baseline()


def test_prompt_whose_scores_are_no_numbers_ends_with_error():
    """NaN where a prompt token is scored ends that request, and no side record of the spoilt rows is published."""

    def spoil(batch, logits):
        if len(batch.row_sequences) > batch.num_sampling:
            logits[batch.num_sampling + 1] = np.nan

    with InProcessEngine(ScriptedRunner(spoil)) as engine:
        bad = engine.submit([1, 2, 3], num_prompt_logprobs=0)
        good = engine.submit([1, 2, 3])
        engine.run()
        assert (bad.tokens, bad.finish) == ([], FinishReason.ERROR)
        assert (len(good.tokens), good.finish) == (8, FinishReason.LENGTH)
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


def test_cached_prefix_is_counted_and_not_computed_again():
    """The finish says how many of the prompt's tokens were cached; with another salt, and without a cache, none are."""
    runner = ScriptedRunner()
    prompt = [*range(40)]
    with InProcessEngine(runner) as engine:
        first = engine.submit(prompt)
        engine.run()
        again, salted = engine.submit(prompt), engine.submit(prompt, cache_salt="mine")
        engine.run()
        assert [request.cached_tokens for request in (first, again, salted)] == [0, 32, 0]
        assert first.tokens == again.tokens == salted.tokens
        gauges = engine.core.gauges()
        assert (gauges.prompt_tokens, gauges.cached_prompt_tokens) == (120, 32)
        engine.assert_at_baseline()
    with InProcessEngine(runner, prefix_caching=False) as engine:
        requests = [engine.submit(prompt)]
        engine.run()
        requests.append(engine.submit(prompt))
        engine.run()
        assert [request.cached_tokens for request in requests] == [0, 0]
        gauges = engine.core.gauges()
        assert (gauges.prompt_tokens, gauges.cached_prompt_tokens) == (80, 0)


def test_number_of_cached_tokens_can_be_had_before_anything_else():
    """A request that wants it gets it as its first record, before its prompt's scores and its output, once."""
    with InProcessEngine(synthetic(), max_num_batched_tokens=8, ring_capacity=8) as engine:
        prompt = [*range(40)]
        requests = [engine.submit(prompt, max_tokens=2, report_cached=True)]
        engine.run()
        requests.append(engine.submit(prompt, max_tokens=2, report_cached=True))
        requests.append(engine.submit(prompt, max_tokens=2, report_cached=True, num_prompt_logprobs=1, num_logprobs=1))
        engine.run()
        assert [request.tokens[0] for request in requests] == [SIDE_RECORD, SIDE_RECORD | 32, SIDE_RECORD]
        assert [request.cached_tokens for request in requests] == [0, 32, 0]
        answer = expected_tokens(prompt, 2)
        assert [request.tokens[1:] for request in requests[:2]] == [answer, answer]
        assert requests[2].tokens[1:] == [
            *(token | SIDE_RECORD for token in prompt[1:] for _ in range(2)),
            *(answer[0], answer[0] | SIDE_RECORD, answer[1], answer[1] | SIDE_RECORD),
        ]  # fmt: skip
        engine.assert_at_baseline()


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


def test_spoilt_prefix_is_not_shared():
    """What a request computed whose logits were no numbers is computed anew for the next one."""
    spoilt = True

    def spoil(_batch, logits):
        logits[:] = np.nan if spoilt else logits

    with InProcessEngine(ScriptedRunner(spoil)) as engine:
        prompt = [*range(40)]
        bad = engine.submit(prompt)
        engine.run()
        spoilt = False
        good = engine.submit(prompt)
        engine.run()
        assert (bad.finish, good.finish) == (FinishReason.ERROR, FinishReason.LENGTH)
        assert good.cached_tokens == 0


def test_running_streams_limit_the_prompt_tokens_beside_them():
    """What the step cost allows is what a step takes of a prompt while somebody decodes, and all of it otherwise."""
    runner = ScriptedRunner()
    cost = StepCost(2.0, first_budget=20, min_budget=20)
    with InProcessEngine(runner, max_num_batched_tokens=64, step_cost=cost) as engine:
        stream = engine.submit([1], max_tokens=6)
        engine.core.step()
        engine.submit([1] * 100, max_tokens=1)
        engine.run()
        chunks = [len(batch.token_ids) for batch in runner.batches]
        assert chunks[1] == 21
        assert sum(chunks) == 1 + 5 + 100
        assert stream.finish == FinishReason.LENGTH


class SeenSteps(StepCost):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(2.0)
        self.seen: list[tuple[int, int]] = []
        self.asked: list[tuple[int, int]] = []
        self.seconds: list[float] = []

    def prompt_budget(self, num_decodes: int, num_prompts: int = 1) -> int:
        """Never a limit; keep what it was asked for."""
        self.asked.append((num_decodes, num_prompts))
        return sys.maxsize

    def observe(self, num_decodes: int, num_prompt_tokens: int, seconds: float) -> None:
        """See StepCost."""
        self.seconds.append(seconds)
        self.seen.append((num_decodes, num_prompt_tokens))


def test_step_cost_learns_who_decoded_and_who_did_not():
    """Every step is reported with the sequences that had one token to go and with the tokens of the others."""
    steps = SeenSteps()
    with InProcessEngine(ScriptedRunner(), step_cost=steps) as engine:
        engine.submit([1] * 7, max_tokens=3)
        engine.core.step()
        engine.submit([2] * 5, max_tokens=2)
        engine.run()
        assert steps.seen == [(0, 7), (1, 5), (2, 0)]
        assert steps.asked[:3] == [(0, 1), (1, 1), (2, 0)]


def test_only_prompts_that_can_run_weigh_against_the_streams():
    """Paused sequences, and those that no seat is left for, do not make a step longer for those that decode."""
    steps = SeenSteps()
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "ring_capacity": 2}
    with InProcessEngine(synthetic(), step_cost=steps, **options) as engine:
        slow = [engine.submit([n], max_tokens=9) for n in range(2)]
        for request in slow:
            engine.rings.consumer.pause(request.ring)
        assert [engine.core.step() for _ in range(3)] == [True, True, False]  # both are paused now
        engine.submit([9], max_tokens=2)
        engine.core.step()
        for n in range(6):
            engine.submit([n] * 200, max_tokens=1)
        engine.core.step()  # whose look at the scheduler comes after the submissions
        assert steps.asked[-1] == (1, 3)


def test_number_of_cached_tokens_cannot_spoil_the_reason():
    """A finish has 24 bits for it; what is more is cut to the most that fits."""
    with InProcessEngine(ScriptedRunner()) as engine:
        request = engine.submit([1])
        engine.core.step()
        engine.publisher.finish(request.ring, FinishReason.STOP, 2**24 + 5)
        engine.publisher.commit()
        engine.rings.drain()
        assert (request.finish, request.cached_tokens) == (FinishReason.STOP, 2**24 - 1)


def test_phase_times_add_up():
    """Each step counts once, and its phases together are its time; a step without work counts nowhere."""
    moments = itertools.count()
    steps = SeenSteps()
    with InProcessEngine(
        ScriptedRunner(), step_cost=steps, step_clock=StepClock(lambda: 10**9 * next(moments) ** 2)
    ) as engine:
        engine.submit([1], max_tokens=2)
        engine.run()
        assert not engine.core.step()
        phases = [(2 * n + 1, 2 * (n + 6) + 1) for n in range(5)]  # of two steps with 6 moments each
        assert engine.core.times == (2, *(10**9 * sum(pair) for pair in phases))
        assert steps.seconds == [25, 11**2 - 6**2]


def test_batch_asks_for_the_logits_that_score_a_prompt():
    """The row before each prompt token scores it, behind the rows that sample; nothing is scored twice."""
    runner = ScriptedRunner()
    with InProcessEngine(runner, max_num_batched_tokens=5) as engine:
        engine.submit([9], max_tokens=3)
        engine.core.step()
        engine.submit([1, 2, 3, 4, 5, 6], max_tokens=2, num_prompt_logprobs=0)
        engine.run()
        asked = [
            (
                batch.logits_rows.tolist(),
                [
                    (sequence.num_prompt_tokens, position)
                    for sequence, position in zip(
                        batch.row_sequences, batch.positions[batch.logits_rows].tolist(), strict=True
                    )
                ],
                batch.num_sampling,
            )
            for batch in runner.batches
        ]
        assert asked == [
            ([0], [(1, 0)], 1),
            ([0, 1, 2, 3, 4], [(1, 1), (6, 0), (6, 1), (6, 2), (6, 3)], 1),
            ([0, 2, 1], [(1, 2), (6, 5), (6, 4)], 2),
            ([0], [(6, 6)], 1),
        ]


def test_batch_puts_decodes_first_and_addresses_the_right_slots():
    """Rows of one token lead, positions continue where each sequence is, and slots follow its block table."""
    runner = ScriptedRunner()
    with InProcessEngine(runner, block_size=4, max_num_batched_tokens=8) as engine:
        engine.submit([5, 6, 7], max_tokens=50)
        engine.core.step()
        engine.submit([30] * 10 + [31])
        engine.core.step()
        engine.core.step()
        first, second = runner.batches[1], runner.batches[2]
        assert first.token_ids.tolist() == [8] + [30] * 7
        assert first.positions.tolist() == [3, *range(7)]
        assert second.token_ids.tolist() == [9, 30, 30, 30, 31]
        assert second.positions.tolist() == [4, 7, 8, 9, 10]
        assert second.context_lens.tolist() == [5, 11]
        assert (first.num_decodes, first.logits_rows.tolist()) == (1, [0])
        assert (second.num_decodes, second.logits_rows.tolist()) == (1, [0, 4])
        tables = second.block_tables
        wanted = [tables[0, 1] * 4] + [tables[1, p // 4] * 4 + p % 4 for p in (7, 8, 9, 10)]
        assert second.slot_mapping.tolist() == wanted
