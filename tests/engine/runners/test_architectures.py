"""Both runners against transformers.generate, token by token, for one small random model of each architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from rbee.messages import FinishReason
from tests.engine.engine_parts import InProcessEngine
from tests.engine.runners.tiny_models import (
    ARCHITECTURES,
    NATIVE_ARCHITECTURES,
    SMALL,
    Architecture,
    answer,
    load,
    load_native,
    make_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.engine.runners.interface import ModelRunner

NUM_TOKENS = 24
PROMPT_LENGTHS = (1, 5, 17, 40, 64)
SHARED = 48  # tokens that the last prompt begins with like the one before it: three blocks
MARGIN = 1e-3  # logits come from another order of additions than transformers', which shifts them by about 1e-5


class Case(NamedTuple):
    """A runner, prompts, and what transformers generates for each prompt alone."""

    runner: ModelRunner
    prompts: list[list[int]]
    expected: list[list[int]]


_RUNNERS: dict[str, tuple[dict[str, Architecture], Callable[..., ModelRunner]]] = {
    "torch": (ARCHITECTURES, load),
    "native": (NATIVE_ARCHITECTURES, load_native),
}


@pytest.fixture(
    scope="module",
    params=[(runner, name) for runner, (architectures, _) in _RUNNERS.items() for name in architectures],
    ids=": ".join,
)
def case(request, tmp_path_factory):
    """One architecture. The last prompt is a second turn: another prompt, half of the answer to it, and a bit more."""
    folder = tmp_path_factory.mktemp("model")
    kind, name = request.param
    architectures, load_runner = _RUNNERS[kind]
    reference = make_model(folder, architectures[name])
    random = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(1, SMALL["vocab_size"], (count,), generator=random).tolist()

    prompts = [draw(length) for length in PROMPT_LENGTHS]
    prompts.append(prompts[-1][:SHARED] + draw(9))
    answers = [answer(reference, prompt, NUM_TOKENS) for prompt in prompts]
    prompts.append(prompts[4] + answers[4].tokens[: NUM_TOKENS // 2] + draw(5))
    answers.append(answer(reference, prompts[-1], NUM_TOKENS))

    assert min(each.margin for each in answers) > MARGIN, "a call this close may go either way: take another seed"
    assert len({token for each in answers for token in each.tokens}) > 30, "a model that repeats itself shows nothing"
    runner = load_runner(folder, max_model_len=architectures[name].max_model_len)
    return Case(runner, prompts, [each.tokens for each in answers])


def generate(runner: ModelRunner, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Greedy tokens for all prompts submitted together; every request must come to its proper end."""
    with InProcessEngine(runner, **options) as engine:
        requests = [engine.submit(prompt, max_tokens=NUM_TOKENS) for prompt in prompts]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.LENGTH}
        assert (engine.scheduler.num_preemptions > 0) == ("num_blocks" in options)
        engine.assert_at_baseline()
        return [request.tokens for request in requests]


def test_alone(case):
    """One request at a time yields transformers' tokens."""
    assert [generate(case.runner, [prompt])[0] for prompt in case.prompts] == case.expected


def test_batched(case):
    """All requests together yield the same tokens."""
    assert generate(case.runner, case.prompts) == case.expected


def test_chunked_prefill(case):
    """A budget of 7 tokens a step, so that prompts come in chunks beside decoding rows, changes nothing."""
    assert generate(case.runner, case.prompts, max_num_batched_tokens=7) == case.expected


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_preemption(case, prefix_caching):
    """A pool that is too small for all, so that sequences are preempted and computed again, changes nothing."""
    num_blocks = 6 if case.runner.window else 16  # such sequences give blocks up as they go
    assert generate(case.runner, case.prompts, num_blocks=num_blocks, prefix_caching=prefix_caching) == case.expected


def test_prefix_cache_hits(case):
    """Requests that begin with what others have computed, prompts or answers, share it and yield the same tokens."""
    _, _, _, _, first, branch, second_turn = case.prompts
    with InProcessEngine(case.runner) as engine:
        for prompts, cached in (([first], [0]), ([first, branch, second_turn], [SHARED, SHARED, 64])):
            requests = [engine.submit(prompt, max_tokens=NUM_TOKENS) for prompt in prompts]
            engine.run()
            expected = [case.expected[case.prompts.index(prompt)] for prompt in prompts]
            assert [request.tokens for request in requests] == expected
            assert [request.cached_tokens for request in requests] == cached
        engine.assert_at_baseline()
