"""Where an answer shows the reasoning: apart, in the text or nowhere, as it comes or at once."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.messages import FinishReason
from rbee.server.streams.generation import ReasoningPlace, ReasoningView
from rbee.server.streams.pieces import Part
from rbee.server.text.output import OutputKind
from tests.server.streams.parsed_output_parts import Case
from tests.server.streams.tagged_output import PLAN, cuts

TEXT, REASONING, ARGUMENTS = OutputKind.TEXT, OutputKind.REASONING, OutputKind.TOOL_ARGUMENTS
APART, IN_TEXT, NOWHERE = ReasoningPlace.APART, ReasoningPlace.IN_TEXT, ReasoningPlace.NOWHERE
WORDS = ["<think>", "a", "b", "</think>", "c", "<tool_call>f{", "}", "</tool_call>"]


def delivered(words, place, *, at_once=False, each=False, **options):
    """A choice of these tokens, with its reasoning there."""
    plan = dataclasses.replace(PLAN, reasoning=ReasoningView(place, at_once))
    return Case(words, plan=plan, **options).deliver(each=each)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_parts(each, at_once):
    """They have the reasoning where it is asked for; its tokens are counted there as anywhere."""
    call = Part(ARGUMENTS, "{}", "f")
    wanted = {
        APART: [Part(REASONING, "ab"), Part(TEXT, "c"), call],
        IN_TEXT: [Part(TEXT, "<think>ab</think>c"), call],
        NOWHERE: [Part(TEXT, "c"), call],
    }
    for place, parts in wanted.items():
        for words in [WORDS, *cuts("".join(WORDS))]:
            case = delivered(words, place, at_once=at_once, each=each)
            assert case.choice.parts == parts, words
            assert "".join(piece.text for piece in case.pieces) == "".join(part.name + part.text for part in parts)
        assert delivered(WORDS, place, at_once=at_once, each=each).choice.reasoning_tokens == 3


def test_reasoning_at_once_is_one_piece():
    """Of its last token, with the entries of all; it comes in front of what follows, or with the end."""
    case = delivered(WORDS, APART, at_once=True, each=True, logprobs=True)
    assert case.listed()[:2] == [("ab", ["<think>", "a", "b"]), ("c", ["</think>", "c"])]
    assert [(piece.num_tokens, piece.part) for piece in case.pieces[:2]] == [(3, 0), (5, 1)]
    unclosed = delivered(["<think>", "a", "b"], APART, at_once=True, each=True)
    assert unclosed.shown() == [(REASONING, "ab", 0)]
    assert unclosed.choice.parts == [Part(REASONING, "ab")]
    inside = delivered(WORDS[:5], IN_TEXT, at_once=True, each=True)
    assert [piece.text for piece in inside.pieces] == ["<think>ab", "</think>", "c"]


def test_nothing_of_hidden_reasoning_is_listed():
    """Neither its tokens nor their logprobs, wherever it ends; those of the answer are."""
    assert delivered(WORDS, NOWHERE, logprobs=True).listed()[0] == ("c", ["</think>", "c"])
    for words in (["<think>", "a", "b"], ["<think>", "a", "<"], ["<think>", "a", "</think>"]):
        for each in (False, True):
            assert delivered(words, NOWHERE, logprobs=True, each=each).listed() == [("", [])]


def test_first_piece_behind_hidden_reasoning_begins_the_answer():
    """No part has ended before it."""
    [piece] = delivered(["<think>a</think>b"], NOWHERE).pieces
    assert (piece.text, piece.part, piece.ended) == ("b", 0, None)


FRAGMENTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "f", "{", "}", "<", "<th", "a b"]


@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=12), st.sampled_from(ReasoningPlace), st.booleans())
def test_all_views_say_the_same(words, place, at_once):
    """Whatever the model writes, however it arrives: a view changes where the reasoning is, and nothing else."""
    plain = delivered(words, APART, logprobs=True)
    at_a_time, together = (delivered(words, place, at_once=at_once, logprobs=True, each=each) for each in (True, False))
    assert at_a_time.listed() == together.listed()
    assert at_a_time.choice.parts == together.choice.parts
    assert at_a_time.choice.num_tokens == plain.choice.num_tokens
    if place is not IN_TEXT:  # where its tags are counted too
        assert together.choice.reasoning_tokens == plain.choice.reasoning_tokens
        kept = [part for part in plain.choice.parts if place is APART or part.kind is not REASONING]
        shown = [(part.kind, part.text, part.name) for part in together.choice.parts]
        assert merged(shown) == merged([(part.kind, part.text, part.name) for part in kept])
    if place is not NOWHERE:
        listed = [entry.token_id for piece in together.pieces for entry in piece.entries]
        assert listed == list(range(len(words)))
    assert together.reasons == [FinishReason.STOP]


def merged(parts):
    """With texts in a row as one."""
    found: list[tuple[OutputKind, str, str]] = []
    for kind, text, name in parts:
        joins = found and kind is TEXT and found[-1][0] is TEXT
        found.append((kind, found.pop()[1] + text if joins else text, name))
    return found
