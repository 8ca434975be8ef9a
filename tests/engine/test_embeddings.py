"""Vectors from EngineCore.step() over real rings, with the synthetic model."""

from __future__ import annotations

import numpy as np
import pytest

from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.synthetic import SyntheticRunner
from rbee.engine.scheduling.step_cost import StepCost
from rbee.messages import SIDE_RECORD, FinishReason
from rbee.models.synthetic import HIDDEN_SIZE, expected_tokens
from rbee.pooling_params import PoolingParams
from tests.embeddings_parts import CLS, LAST, MEAN, synthetic_vector
from tests.engine.engine_parts import InProcessEngine, synthetic

PROMPTS = [[7], [1, 2, 3], list(range(40)), list(range(5, 90)), [9] * 64]
EACH = pytest.mark.parametrize("params", [MEAN, LAST, CLS], ids=lambda params: params.method)


def check(request, prompt, params):
    """Whole, in order, and right."""
    assert request.finish == FinishReason.STOP
    assert all(token & SIDE_RECORD for token in request.tokens), "a value is no token"
    assert [token & ~SIDE_RECORD for token in request.tokens] == list(range(params.dimensions or HIDDEN_SIZE))
    assert np.allclose(request.logprobs, synthetic_vector(prompt, params), rtol=0, atol=1e-6)


@EACH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"max_num_seqs": 1},
        {"num_blocks": 12},
        {"prefix_caching": False},
        {"ring_capacity": 4},
    ],
    ids=str,
)
def test_vectors_do_not_depend_on_how_they_are_computed(params, options):
    """Alone or together, in chunks, with few blocks or rings smaller than a vector: the same."""
    with InProcessEngine(synthetic(), **options) as engine:
        requests = [engine.submit(prompt, pooling=params) for prompt in PROMPTS]
        engine.run()
        for prompt, request in zip(PROMPTS, requests, strict=True):
            check(request, prompt, params)
        engine.assert_at_baseline()


@EACH
def test_vector_of_a_preempted_sequence(params):
    """A sequence that loses its blocks in the middle of its prompt counts no token twice, and leaves none out."""
    long = [token % 251 for token in range(160)]  # ten of eleven blocks, until the stream needs its second
    with InProcessEngine(synthetic(), num_blocks=11, max_num_batched_tokens=8) as engine:
        stream = engine.submit([3] * 15, max_tokens=30)
        vector = engine.submit(long, pooling=params)
        engine.run()
        assert engine.scheduler.num_preemptions == 1
        check(vector, long, params)
        assert stream.tokens == expected_tokens([3] * 15, 30)
        engine.assert_at_baseline()


def test_cached_prompts_are_computed_again_unless_the_last_token_is_enough():
    """The mean and the first token's state need rows that a cached prompt has not; what they compute is shared."""
    prompt = list(range(70))
    with InProcessEngine(synthetic()) as engine:
        for params, cached in ((MEAN, 0), (MEAN, 0), (CLS, 0), (LAST, 64)):
            request = engine.submit(prompt, pooling=params)
            engine.run()
            check(request, prompt, params)
            assert request.cached_tokens == cached
        stream = engine.submit([*prompt, 1])
        engine.run()
        assert (stream.cached_tokens, stream.tokens) == (64, expected_tokens([*prompt, 1], 8))


def test_dimensions_and_length():
    """Cut to the first values, and then scaled to length 1 or not."""
    for params in (
        PoolingParams(method="mean", dimensions=5),
        PoolingParams(method="mean", dimensions=5, normalize=False),
        PoolingParams(method="last", normalize=False),
    ):
        with InProcessEngine(synthetic()) as engine:
            request = engine.submit([1, 2, 3], pooling=params)
            engine.run()
            check(request, [1, 2, 3], params)


def test_prompt_may_be_as_long_as_the_model():
    """Nothing is generated, so that no token needs room; one more is refused."""
    runner = SyntheticRunner(CacheSize(block_size=16, kv_cache_mib=64, max_model_len=48), step_seconds=0)
    with InProcessEngine(runner) as engine:
        whole, longer = (engine.submit([1] * size, pooling=MEAN) for size in (48, 49))
        engine.run()
        check(whole, [1] * 48, MEAN)
        assert (longer.finish, longer.tokens) == (FinishReason.ERROR, [])


class _Twenty(StepCost):
    """Lets a step have 20 prompt tokens beside streams, and remembers what it was asked."""

    def __init__(self):
        super().__init__(2.0)
        self.asked = []

    def prompt_budget(self, num_decodes, num_prompts=1):
        self.asked.append((num_decodes, num_prompts))
        return 20


def test_running_streams_are_delayed_as_by_any_prompt():
    """A prompt for a vector has the prompt tokens that the step cost allows beside streams, and the streams go on."""
    with InProcessEngine(synthetic(), step_cost=_Twenty()) as engine:
        stream = engine.submit([1], max_tokens=9)
        engine.core.step()
        vector = engine.submit([1] * 100, pooling=MEAN)
        for steps in range(2, 6):
            assert engine.core.step()
            engine.rings.drain()
            assert len(stream.tokens) == steps
            assert vector.finish is None
        engine.run()
        check(vector, [1] * 100, MEAN)
        assert stream.tokens == expected_tokens([1], 9)


def test_vectors_do_not_weigh_against_streams():
    """However many wait or are computed: steps get no longer than for one prompt, unless others want a token."""
    cost = _Twenty()
    with InProcessEngine(synthetic(), step_cost=cost, max_num_seqs=16) as engine:
        engine.submit([1], max_tokens=30)
        engine.core.step()
        for _ in range(9):
            engine.submit([1] * 100, pooling=MEAN)
        engine.core.step()
        engine.core.step()
        assert cost.asked[1:] == [(1, 0), (1, 0)]
        engine.submit([2] * 100, priority=-1)
        engine.core.step()
        assert cost.asked[-1] == (1, 1)
        engine.run()
        engine.assert_at_baseline()


def test_blocks_are_free_before_the_vector_is_read():
    """Only the ring is held by a slow reader, who is ended like any other."""
    with InProcessEngine(synthetic(), ring_capacity=4, slow_reader_timeout=5) as engine:
        request = engine.submit([1] * 40, pooling=MEAN)
        while engine.core.step():
            pass
        assert engine.core.gauges().kv_blocks_used == 0
        assert engine.rings.consumer.in_use == 1
        engine.now_ns += 6_000_000_000
        assert engine.core.step()
        engine.rings.drain()
        assert (request.finish, len(request.tokens)) == (FinishReason.SLOW_READER, 4)
        engine.assert_at_baseline()


def test_cancel_in_the_middle():
    """Of its prompt, or of its vector: the ring and all blocks are free with the next step."""
    with InProcessEngine(synthetic(), ring_capacity=4, max_num_batched_tokens=16) as engine:
        prompt, vector = engine.submit([1] * 40, pooling=MEAN), engine.submit([2] * 3, pooling=MEAN)
        engine.core.step()
        assert engine.rings.consumer.in_use == 2
        for request in (prompt, vector):
            engine.rings.consumer.cancel(request.ring)
        engine.run()
        assert (prompt.finish, vector.finish) == (FinishReason.ABORT, FinishReason.ABORT)
        engine.assert_at_baseline()


def test_deadline_ends_it():
    """Before it runs, without a value."""
    with InProcessEngine(synthetic()) as engine:
        request = engine.submit([1, 2], pooling=MEAN, deadline_ns=5)
        engine.now_ns = 5
        engine.run()
        assert (request.finish, request.tokens) == (FinishReason.DEADLINE, [])
        engine.assert_at_baseline()


def test_failed_step_ends_a_vector_that_is_being_published():
    """Every sequence has one end, also one that waits for nothing but its ring."""
    with InProcessEngine(synthetic(), ring_capacity=4) as engine:
        request = engine.submit([1, 2], pooling=MEAN)
        engine.core.step()
        engine.core.end_all(FinishReason.ERROR)
        engine.rings.drain()
        assert request.finish == FinishReason.ERROR
        engine.assert_at_baseline()


class _Spoilt(SyntheticRunner):
    """Hidden states of prompts of two tokens are no numbers."""

    def execute(self, batch):
        output = super().execute(batch)
        assert output.hidden_states is not None
        for sequence, rows in batch.pooling():
            if sequence.num_prompt_tokens == 2:
                output.hidden_states[rows] = np.nan
        return output


def test_hidden_states_that_are_not_numbers_end_only_their_request(caplog):
    """With an error, and nothing that it computed is shared."""
    with InProcessEngine(_Spoilt(CacheSize(block_size=16, kv_cache_mib=64), step_seconds=0)) as engine:
        bad, good = engine.submit([1, 1], pooling=MEAN), engine.submit([1, 1, 1], pooling=MEAN)
        engine.run()
        assert (bad.finish, bad.tokens) == (FinishReason.ERROR, [])
        check(good, [1, 1, 1], MEAN)
        engine.assert_at_baseline()
    assert "its hidden states are not finite" in caplog.text
