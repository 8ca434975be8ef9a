"""EngineCore.step() over real rings, with the synthetic model or a scripted one."""

from __future__ import annotations

import itertools
import socket
import sys
from typing import Any

import numpy as np
import pytest

from rbee.engine.process import Loop
from rbee.engine.scheduling.step_cost import StepCost
from rbee.engine.step_clock import StepClock
from rbee.messages import FinishReason
from rbee.models.synthetic import expected_tokens
from rbee.transport.control import ControlChannel
from tests.engine.engine_parts import InProcessEngine, ScriptedRunner, synthetic


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


def test_failed_step_ends_every_request_with_error(caplog):
    """When the model itself raises, all that lives gets ERROR, the log the traceback, the exit code is 1."""

    def fail(batch, _logits):
        if batch.row_sequences[0].num_output_tokens == 2:
            raise RuntimeError("the device is on fire")

    server_end, engine_end = socket.socketpair()
    with server_end, InProcessEngine(ScriptedRunner(fail), max_num_seqs=1) as engine:
        requests = [engine.submit([1]), engine.submit([2])]
        channel = ControlChannel(engine_end)
        assert Loop(channel, engine.producer, engine.core, engine.grammars).run([]) == 1
        channel.close()
        engine.rings.drain()
        assert [(request.tokens, request.finish) for request in requests] == [
            ([2, 3], FinishReason.ERROR),
            ([], FinishReason.ERROR),
        ]
        engine.assert_at_baseline()
    assert "the device is on fire" in caplog.text


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
    options: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "ring_capacity": 2}
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
