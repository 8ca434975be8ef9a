"""Sequences whose output follows a grammar: masks, ends, errors, and that nobody else waits for them."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rbee.errors import ModelError
from rbee.messages import FinishReason
from tests.engine.engine_parts import PATIENCE, InProcessEngine, Request, ScriptedRunner, synthetic
from tests.engine.grammars_parts import FakeVocabulary, engine_with

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rbee.grammars.vocabulary import Vocabulary

_ANYTHING = 1e33  # a temperature at which each token of the synthetic model is as likely as any other
_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_PERSONS = "start: %json " + json.dumps(_PERSON)


def text_of(request: Request) -> str:
    """What the synthetic model wrote."""
    return bytes(request.tokens).decode()


def test_an_output_follows_its_grammar_and_ends_by_itself():
    """Whatever is drawn, the output is what the schema wants, and its last token ends the sequence with `stop`."""
    with InProcessEngine(synthetic()) as engine:
        requests = [
            engine.submit([1], grammar=_PERSONS, temperature=_ANYTHING, seed=seed, max_tokens=300) for seed in range(20)
        ]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.STOP}
        people = [json.loads(text_of(request)) for request in requests]
        assert all(set(person) == {"name", "age"} and 0 <= person["age"] <= 99 for person in people)
        assert len({str(person) for person in people}) == len(people)
        engine.assert_at_baseline()


def test_greedy_takes_the_most_likely_of_the_tokens_that_may_come():
    """Equally likely ones: the lowest id. The logprob is that of the model, which expected another token."""
    with InProcessEngine(synthetic()) as engine:
        request = engine.submit([1], grammar='start: "ab" | "aa" | "c"', num_logprobs=0)
        engine.run()
    assert (text_of(request), request.finish) == ("aa", FinishReason.STOP)
    assert request.logprobs[0] < -1e29


def test_only_tokens_that_end_an_output_may_end_it_within_its_grammar():
    """An end is possible where the grammar allows one, by `grammar_end_ids` alone."""
    with InProcessEngine(synthetic()) as engine:
        options: dict[str, Any] = {"grammar": "start: /a+/", "max_tokens": 50, "temperature": _ANYTHING}
        ends = [
            engine.submit([1], grammar_end_ids=(7, 255), stop_token_ids=(7, 255), seed=seed, **options)
            for seed in range(20)
        ]
        endless = engine.submit([1], **options)
        engine.run()
    assert {request.tokens[-1] for request in ends} == {7, 255}
    assert all(len(request.tokens) > 1 and set(request.tokens[:-1]) == {ord("a")} for request in ends)
    assert (endless.tokens, endless.finish) == ([ord("a")] * 50, FinishReason.LENGTH)


def test_an_output_that_may_only_be_empty_ends_without_a_token():
    """That its grammar wants nothing more shows before a token is drawn; beside others, which are drawn."""
    with InProcessEngine(synthetic()) as engine:
        empty = engine.submit([1], grammar='start: ""', min_tokens=3)
        beside = engine.submit([1])
        engine.run()
        assert (empty.tokens, empty.finish) == ([], FinishReason.STOP)
        assert (len(beside.tokens), beside.finish) == (8, FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_the_last_token_may_complete_an_output():
    """`length` is the reason only if the output is cut."""
    with InProcessEngine(synthetic()) as engine:
        whole, cut = (engine.submit([1], grammar='start: "abcd"', max_tokens=number) for number in (4, 3))
        engine.run()
    assert (text_of(whole), whole.finish) == ("abcd", FinishReason.STOP)
    assert (text_of(cut), cut.finish) == ("abc", FinishReason.LENGTH)


def test_a_preempted_output_goes_on_where_it_was():
    """With blocks for one and a half sequences the tokens are those of a sequence alone."""

    def tokens(num_blocks: int) -> list[list[int]]:
        with InProcessEngine(synthetic(), num_blocks=num_blocks, block_size=4) as engine:
            requests = [
                engine.submit([1] * 6, grammar=_PERSONS, temperature=_ANYTHING, seed=seed, max_tokens=60)
                for seed in range(4)
            ]
            engine.run()
            assert (engine.scheduler.num_preemptions > 0) == (num_blocks < 100)
            return [request.tokens for request in requests]

    assert tokens(20) == tokens(200)


def test_an_engine_without_grammars_loads_no_vocabulary():
    """The first grammar does, once, on a thread of its own: nobody else waits for that."""
    loaded: list[int] = []
    go_on = threading.Event()

    def load() -> Vocabulary:
        loaded.append(threading.get_ident())
        assert go_on.wait(PATIENCE)
        return FakeVocabulary()  # type: ignore[return-value]

    with InProcessEngine(synthetic(), load_vocabulary=load) as engine:
        threads = threading.active_count()
        engine.submit([1])
        engine.run()
        assert (loaded, threading.active_count()) == ([], threads)
        first, beside = engine.submit([1], grammar="digits"), engine.submit([1])
        while beside.finish is None:
            engine.core.step()
            engine.rings.drain()
        assert (first.tokens, first.finish) == ([], None)
        go_on.set()
        engine.run()
        second = engine.submit([1], grammar="other digits")
        engine.run()
        assert [text_of(request) for request in (first, second)] == ["1" * 8] * 2
    [thread] = loaded
    assert thread != threading.get_ident()


def test_sequences_without_a_grammar_do_not_wait_for_one_that_is_built():
    """It is built on a thread of its own; its own sequence waits, whatever its rank."""
    go_on = threading.Event()
    with engine_with(FakeVocabulary(before=go_on)) as engine:
        waiting = engine.submit([1], grammar="digits", priority=-100)
        others = [engine.submit([1]) for _ in range(2)]
        while engine.core.step():
            engine.rings.drain()
        assert [request.finish for request in others] == [FinishReason.LENGTH] * 2
        assert (waiting.tokens, waiting.finish, engine.core.gauges().sequences_waiting) == ([], None, 1)
        assert engine.scheduler.num_prompts == 0, "for it no step of theirs is longer"
        go_on.set()
        engine.run()
        assert (text_of(waiting), waiting.finish) == ("1" * 8, FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_a_late_mask_delays_its_own_sequence_only():
    """The sequence beside it goes on; it goes on later, with the tokens that it would have had."""
    late = threading.Event()
    with engine_with(FakeVocabulary(late=late)) as engine:
        constrained = engine.submit([1, 2, 3], grammar="digits", max_tokens=3)
        while not constrained.tokens:
            engine.core.step()
            engine.rings.drain()
        beside = engine.submit([1], max_tokens=5)
        while beside.finish is None:
            engine.core.step()
            engine.rings.drain()
        assert constrained.tokens == [ord("1")]
        late.set()
        engine.run()
        assert (text_of(constrained), constrained.finish) == ("111", FinishReason.LENGTH)
        engine.assert_at_baseline()


def test_a_late_mask_does_not_delay_those_with_the_same_grammar():
    """Each output has a matcher of its own, which has nothing to do with the others once it is built."""
    late = threading.Event()
    with engine_with(FakeVocabulary(late=late, whose=2), grammar_threads=2) as engine:
        first, second = (engine.submit([1], grammar="digits", max_tokens=3) for _ in range(2))
        while not second.tokens:
            engine.core.step()
            engine.rings.drain()
        while first.finish is None:
            engine.core.step()
            engine.rings.drain()
        assert (text_of(first), text_of(second)) == ("111", "1")
        late.set()
        engine.run()
        assert text_of(second) == "111"
        engine.assert_at_baseline()


def test_a_sequence_can_be_preempted_while_its_mask_is_late():
    """It gives its blocks to the one beside it, and goes on later with the tokens that it would have had."""
    late = threading.Event()
    with engine_with(FakeVocabulary(late=late), num_blocks=8, block_size=4) as engine:
        constrained = engine.submit([1] * 8, grammar="digits", max_tokens=6, priority=1)
        while not constrained.tokens:
            engine.core.step()
            engine.rings.drain()
        beside = engine.submit([2] * 8, max_tokens=22)
        while beside.finish is None:
            engine.core.step()
            engine.rings.drain()
        assert (text_of(constrained), engine.scheduler.num_preemptions) == ("1", 1)
        late.set()
        engine.run()
        assert (text_of(constrained), constrained.finish) == ("1" * 6, FinishReason.LENGTH)
        engine.assert_at_baseline()


@pytest.mark.parametrize("options", [{}, {"num_logprobs": 0}, {"presence_penalty": 1.5, "logit_bias": {123: 3.0}}])
def test_a_cached_prefix_changes_nothing(options: dict[str, Any]):
    """Choices of one prompt share its blocks, and so does a later request; each output has a matcher of its own."""

    def outputs(engine: InProcessEngine, cached_tokens: int) -> list[tuple[str, str]]:
        requests = [
            engine.submit([1] * 40, grammar=_PERSONS, temperature=_ANYTHING, seed=seed, max_tokens=300, **options)
            for seed in range(3)
        ]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.STOP}
        assert requests[-1].cached_tokens == cached_tokens
        return [(text_of(request), str(request.logprobs)) for request in requests]  # NaN is no NaN

    with InProcessEngine(synthetic()) as engine, InProcessEngine(synthetic(), prefix_caching=False) as uncached:
        engine.submit([1] * 40)
        engine.run()
        assert outputs(engine, 32) == outputs(engine, 32) == outputs(uncached, 0)


def test_what_has_ended_keeps_nobody_waiting():
    """A grammar that is for nobody any more is not built."""
    go_on = threading.Event()
    vocabulary = FakeVocabulary(before=go_on)
    with engine_with(vocabulary) as engine:
        requests = [engine.submit([1], grammar=grammar, deadline_ns=5) for grammar in ("first", "second")]
        assert not engine.core.step()
        assert vocabulary.started.wait(PATIENCE)
        engine.now_ns = 5
        engine.core.step()
        last = engine.submit([1], grammar="third")
        engine.core.step()
        go_on.set()
        engine.run()
        assert [request.finish for request in (*requests, last)] == [FinishReason.DEADLINE] * 2 + [FinishReason.LENGTH]
    assert vocabulary.compiled == ["first", "third"]


@pytest.mark.parametrize("grammar", ["slow in masks", "slow at tokens"])
def test_a_grammar_that_takes_too_much_computing_ends_its_own_sequence(grammar: str, caplog: pytest.LogCaptureFixture):
    """A token takes the engine's own time, and a mask that of the others."""
    with engine_with(FakeVocabulary()) as engine:
        failing, beside = engine.submit([1], grammar=grammar), engine.submit([1], grammar="digits")
        engine.run()
        assert (failing.finish, beside.finish) == (FinishReason.GRAMMAR, FinishReason.LENGTH)
        assert "it takes too much computing to follow" in caplog.text
        engine.assert_at_baseline()


@pytest.mark.parametrize("grammar", ["broken", "breaks in a mask", "breaks at a token"])
def test_a_grammar_that_fails_ends_its_own_sequence_only(grammar: str, caplog: pytest.LogCaptureFixture):
    """Its reason is in the log; the sequence beside it does not notice."""
    with engine_with(FakeVocabulary()) as engine:
        failing, beside = engine.submit([1], grammar=grammar), engine.submit([1])
        engine.run()
        assert failing.finish == FinishReason.GRAMMAR
        assert beside.finish == FinishReason.LENGTH
        assert f"its grammar cannot be followed: {grammar}" in caplog.text
        engine.assert_at_baseline()


def test_one_output_fails_alone_beside_others_of_its_grammar():
    """As one does that reaches a limit."""
    with engine_with(FakeVocabulary()) as engine:
        requests = [engine.submit([1], grammar="breaks in one") for _ in range(3)]
        engine.run()
        assert [request.finish for request in requests] == [FinishReason.GRAMMAR, *[FinishReason.LENGTH] * 2]
        assert [text_of(request) for request in requests] == ["11", *["1" * 8] * 2]
        engine.assert_at_baseline()


def test_a_grammar_is_compiled_once():
    """Also if an output has failed: what is kept has not. One that does not compile is not kept."""
    vocabulary = FakeVocabulary()
    with engine_with(vocabulary) as engine:
        for grammar in ("breaks at a token", "digits", "broken") * 2:
            engine.submit([1], grammar=grammar)
            engine.run()
    assert vocabulary.compiled == ["breaks at a token", "digits", "broken", "broken"]


def test_a_grammar_that_other_parameters_exclude_is_not_compiled_anew():
    """Nothing is wrong with it. Nor is its first mask filled again."""
    vocabulary = FakeVocabulary()
    with engine_with(vocabulary) as engine:
        for allowed in ((50,), None, (50,), None):
            request = engine.submit([1], grammar="digits", allowed_token_ids=allowed)
            engine.run()
            assert request.finish == (FinishReason.GRAMMAR if allowed else FinishReason.LENGTH)
    assert (vocabulary.compiled, vocabulary.begun) == (["digits"], ["digits"])


def test_an_engine_without_a_vocabulary_refuses_grammars_only():
    """What a token stands for may depend on its neighbours."""

    def load() -> Vocabulary:
        raise ModelError("no token stands for anything")

    with InProcessEngine(synthetic(), load_vocabulary=load) as engine:
        constrained, plain = engine.submit([1], grammar="digits"), engine.submit([1])
        engine.run()
    assert (constrained.finish, plain.finish) == (FinishReason.GRAMMAR, FinishReason.LENGTH)


def test_parameters_that_leave_no_token_of_the_grammar_end_the_sequence():
    """That is no fault of the model, whose blocks may be found again; logits that are no numbers are."""

    def spoil(_batch: object, logits: NDArray[np.float32]) -> None:
        logits[:] = np.nan

    for react, reason in ((None, FinishReason.GRAMMAR), (spoil, FinishReason.ERROR)):
        with InProcessEngine(ScriptedRunner(react)) as engine:
            request = engine.submit([1], grammar='start: "1"', allowed_token_ids=(50,))
            engine.run()
            assert request.finish == reason
            engine.assert_at_baseline()


def test_a_sequence_can_end_while_its_grammar_is_built():
    """By its deadline, here; what is built for it afterwards is for nobody."""
    go_on = threading.Event()
    with engine_with(FakeVocabulary(before=go_on)) as engine:
        request = engine.submit([1], grammar="digits", deadline_ns=5)
        assert not engine.core.step()
        engine.now_ns = 5
        engine.core.step()
        engine.rings.drain()
        assert request.finish == FinishReason.DEADLINE
        go_on.set()
        engine.assert_at_baseline()
