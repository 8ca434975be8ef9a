"""Reasoning that takes as many tokens as its budget: the closing tag comes then, and nothing else changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.engine import sampler
from rbee.messages import FinishReason
from rbee.sampling_params import ReasoningBudget, SamplingParams
from tests.engine.engine_parts import InProcessEngine, Request, ScriptedRunner, synthetic

BEGIN, END = 60, 61  # no text that the tests' model writes has them


def budget(tokens: int, **more: Any) -> ReasoningBudget:
    """Of reasoning that the prompt has opened, unless told otherwise."""
    return ReasoningBudget(tokens=tokens, **{"end_id": END, "is_open": True} | more)


def written(first: int, **options: Any) -> Request:
    """What comes behind a prompt whose last token is `first`: the model counts up by one."""
    with InProcessEngine(ScriptedRunner()) as engine:
        request = engine.submit([first], **options)
        engine.run()
        engine.assert_at_baseline()
    return request


@pytest.mark.parametrize("tokens", range(6))
def test_the_closing_tag_comes_behind_so_many_tokens(tokens):
    """Exactly; then the model goes on as it likes, behind the tag."""
    request = written(9, reasoning_budget=budget(tokens))
    reasoning = [10 + number for number in range(tokens)]
    rest = [(END + 1 + number) % 64 for number in range(8 - tokens - 1)]
    assert request.tokens == [*reasoning, END, *rest]
    assert request.finish == FinishReason.LENGTH


def test_reasoning_that_ends_by_itself_is_left_alone():
    """With as many tokens as it may have, and with fewer; a closing tag that comes later is one of the answer's."""
    for first, tokens in ((END - 3, 2), (END - 3, 5), (END - 1, 0)):
        assert written(first, reasoning_budget=budget(tokens)).tokens == written(first).tokens
    again = written(END - 2, reasoning_budget=budget(1), max_tokens=70)
    assert again.tokens == written(END - 2, max_tokens=70).tokens


@pytest.mark.parametrize("before", range(5))
def test_reasoning_that_the_model_opens(before):
    """Its tag is one of the first four tokens, behind white space for example. It is not counted."""
    first, opener = 20, 21 + before
    free = written(first, max_tokens=12).tokens
    limit = budget(3, is_open=False, begin_ids=(5, opener))
    request = written(first, reasoning_budget=limit, max_tokens=12)
    assert free[before] == opener
    if before < 4:
        assert request.tokens[: before + 5] == [*free[: before + 4], END]
    else:
        assert request.tokens == free


def test_an_output_without_reasoning_is_left_alone():
    """No opening tag comes."""
    options: dict[str, Any] = {"reasoning_budget": budget(2, is_open=False, begin_ids=(40,))}
    assert written(1, **options).tokens == written(1).tokens


def test_those_beside_it_draw_what_they_draw():
    """At random, with seeds: choices of one prompt with and without a budget, and other requests."""

    def outputs(*budgets: ReasoningBudget | None) -> list[list[int]]:
        with InProcessEngine(ScriptedRunner()) as engine:
            requests = [
                engine.submit([1], temperature=4.0, seed=seed, max_tokens=20, reasoning_budget=each)
                for seed, each in enumerate(budgets)
            ]
            engine.run()
            return [request.tokens for request in requests]

    free = outputs(None, None, None, None)
    limited = outputs(None, budget(5), None, budget(7))
    assert [limited[0], limited[2]] == [free[0], free[2]]
    for choice, tokens in ((1, 5), (3, 7)):
        assert limited[choice][:tokens] == free[choice][:tokens]
        assert limited[choice][tokens] == END != free[choice][tokens]


def test_a_preempted_output_counts_on():
    """With blocks for one and a half sequences the tokens are those of a sequence alone."""

    def tokens(num_blocks: int) -> list[list[int]]:
        with InProcessEngine(synthetic(), num_blocks=num_blocks, block_size=4) as engine:
            requests = [
                engine.submit([1] * 6, temperature=1e33, seed=seed, max_tokens=60, reasoning_budget=budget(30))
                for seed in range(4)
            ]
            engine.run()
            assert (engine.scheduler.num_preemptions > 0) == (num_blocks < 100)
            return [request.tokens for request in requests]

    alone = tokens(200)
    assert tokens(20) == alone
    assert all(request[30] == END or END in request[:30] for request in alone)


def test_logprobs_are_the_model_s():
    """Also of the closing tag that it did not expect."""
    request = written(9, reasoning_budget=budget(2), num_logprobs=0)
    assert [logprob > -0.1 for logprob in request.logprobs] == [True, True, False, *[True] * 5]


def test_a_stop_token_that_is_the_closing_tag_ends_the_output():
    """As if the model had written it."""
    request = written(9, reasoning_budget=budget(2), stop_token_ids=(END,))
    assert (request.tokens, request.finish) == ([10, 11, END], FinishReason.STOP)


def test_the_answer_follows_its_grammar():
    """Reasoning, which is free, as long as it may be, then the answer; the tag is a token that both know."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    source = f'start: /[b-z]*/ "\\x01" %json {json.dumps(schema)}'
    with InProcessEngine(synthetic()) as engine:
        requests = [
            engine.submit(
                [1], grammar=source, temperature=1e33, seed=seed, max_tokens=200, reasoning_budget=budget(5, end_id=1)
            )
            for seed in range(20)
        ]
        engine.run()
    for request in requests:
        reasoning, _, answer = bytes(request.tokens).partition(b"\x01")
        assert len(reasoning) <= 5
        assert json.loads(answer)["a"] in (1, 2)
        assert request.finish == FinishReason.STOP
    assert any(bytes(request.tokens)[5] == 1 for request in requests)


def test_a_grammar_that_does_not_allow_the_tag_yet_is_heeded():
    """In the middle of a character: the tag comes behind it."""
    source = 'start: ("\\u00e9" | "\\u00e8")* "\\x01" "a"'
    with InProcessEngine(synthetic()) as engine:
        odd, even = (
            engine.submit(
                [1],
                grammar=source,
                temperature=1e33,
                seed=seed,
                logit_bias={1: -100.0},
                max_tokens=9,
                reasoning_budget=budget(tokens, end_id=1),
            )
            for seed, tokens in ((1, 3), (2, 4))
        )
        engine.run()
    for request in (odd, even):
        assert len(bytes(request.tokens).partition(b"\x01")[0].decode()) <= 2
        assert request.finish == FinishReason.STOP
        assert bytes(request.tokens).endswith(b"\x01a")


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({"end_id": 64}, "reasoning_budget has token 64"),
        ({"begin_ids": (3, -1)}, "reasoning_budget has token -1"),
        ({"tokens": -1}, "reasoning_budget has -1 tokens"),
    ],
)
def test_what_cannot_be_is_refused(members, problem):
    """By the engine too, whatever the server has let pass."""
    params = SamplingParams(max_tokens=1, reasoning_budget=ReasoningBudget(**{"tokens": 1, "end_id": 1} | members))
    assert problem in (sampler.invalid(params, 64) or "")
