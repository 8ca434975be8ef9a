"""Logprobs, the scores of prompts and the number of cached tokens, as they reach the ring."""

from __future__ import annotations

import numpy as np
import pytest

from rbee.messages import SIDE_RECORD, FinishReason
from rbee.models.synthetic import expected_tokens
from tests.engine.engine_parts import InProcessEngine, Request, ScriptedRunner, synthetic


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
    """Of each prompt token but the first its rank and logprob, and the most likely one, also in chunks; then output."""
    with InProcessEngine(synthetic(), **options) as engine:
        prompt = [7, 9, 9, 200, 3, 1, 1, 1, 1, 1, 40]
        request = engine.submit(prompt, max_tokens=3, num_prompt_logprobs=1, num_logprobs=0)
        beside = engine.submit([5], max_tokens=30)
        engine.run()
        expected = [(number, True, 0.0) for token in prompt[1:] for number in (1, token)]
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
        assert request.tokens == [1 | SIDE_RECORD] * (len(prompt) - 1) + expected_tokens(prompt, 2)
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
            *(number | SIDE_RECORD for token in prompt[1:] for number in (1, token)),
            *(answer[0], answer[0] | SIDE_RECORD, answer[1], answer[1] | SIDE_RECORD),
        ]  # fmt: skip
        engine.assert_at_baseline()


def test_number_of_cached_tokens_cannot_spoil_the_reason():
    """A finish has 24 bits for it; what is more is cut to the most that fits."""
    with InProcessEngine(ScriptedRunner()) as engine:
        request = engine.submit([1])
        engine.core.step()
        engine.publisher.finish(request.ring, FinishReason.STOP, 2**24 + 5)
        engine.publisher.commit()
        engine.rings.drain()
        assert (request.finish, request.cached_tokens) == (FinishReason.STOP, 2**24 - 1)
