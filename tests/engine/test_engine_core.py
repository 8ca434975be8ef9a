"""EngineCore.step() over real rings, with the synthetic model or a scripted one."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from engine_parts import InProcessEngine, ScriptedRunner

from rbee.engine.process import _Loop
from rbee.engine.synthetic_runner import SyntheticRunner
from rbee.messages import FinishReason
from rbee.models.synthetic import expected_tokens
from rbee.transport.control import ControlChannel


def synthetic() -> SyntheticRunner:
    """The synthetic model without waiting."""
    return SyntheticRunner(step_seconds=0, max_model_len=0, block_size=16, kv_cache_mib=64)


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
    """The synthetic model leaves the sampler no choice, and its logprob is 0."""
    with InProcessEngine(synthetic()) as engine:
        request = engine.submit([1, 2, 3], **sampling)
        engine.run()
        assert request.tokens == expected_tokens([1, 2, 3], 8)
        assert request.logprobs == [0] * 8


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
        for row, sequence in enumerate(batch.sampling):
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
    with InProcessEngine(ScriptedRunner(), max_num_batched_tokens=16) as engine:
        decoding = engine.submit([1], max_tokens=100)
        engine.core.step()
        in_prefill = engine.submit([1] * 40)
        in_queue = engine.submit([2] * 40)
        engine.core.step()
        assert engine.core.stats().num_waiting == 1
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
    """After slow_reader_timeout with a full ring its sequence ends with DEADLINE and is freed; the other goes on."""
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
        stats = engine.core.stats()
        assert (stats.num_running, stats.num_waiting) == (1, 0)
        assert stats.num_preemptions == (0 if num_blocks is None else 1)
        engine.rings.consumer.resume(slow.ring)
        engine.run()
        assert (slow.tokens, slow.finish) == (expected_tokens([1], 8), FinishReason.DEADLINE)
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
        if batch.sampling[0].num_output_tokens == 2:
            raise RuntimeError("the device is on fire")

    server_end, engine_end = socket.socketpair()
    with server_end, InProcessEngine(ScriptedRunner(fail), max_num_seqs=1) as engine:
        requests = [engine.submit([1]), engine.submit([2])]
        channel = ControlChannel(engine_end)
        assert _Loop(channel, engine.producer, engine.core).run([]) == 1
        channel.close()
        engine.rings.drain()
        assert [(request.tokens, request.finish) for request in requests] == [
            ([2, 3], FinishReason.ERROR),
            ([], FinishReason.ERROR),
        ]
        engine.assert_at_baseline()
    assert "the device is on fire" in caplog.text


def test_logprobs_reach_the_ring():
    """The record of a token carries its logprob under the raw distribution."""
    with InProcessEngine(ScriptedRunner()) as engine:
        request = engine.submit([1], max_tokens=2)
        engine.run()
        exact = 9 - np.log(np.exp(9) + 63)
        np.testing.assert_allclose(request.logprobs, [exact, exact], rtol=1e-5)


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
        assert (first.num_decodes, first.sampling_rows.tolist()) == (1, [0])
        assert (second.num_decodes, second.sampling_rows.tolist()) == (1, [0, 4])
        tables = second.block_tables
        wanted = [tables[0, 1] * 4] + [tables[1, p // 4] * 4 + p % 4 for p in (7, 8, 9, 10)]
        assert second.slot_mapping.tolist() == wanted
