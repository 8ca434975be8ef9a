"""Where a chat's answer has the reasoning, in the words of vLLM, OpenRouter, SGLang and llama.cpp."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest

from rbee.server.errors import Refusal
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.streams.generation import ReasoningPlace, ReasoningView
from rbee.server.text.output import ModelFormat
from tests.server.protocols.parameters_parts import HI, MODEL, ready

APART, IN_TEXT, NOWHERE = ReasoningPlace.APART, ReasoningPlace.IN_TEXT, ReasoningPlace.NOWHERE
THINKS = dataclasses.replace(MODEL, output_format=ModelFormat("hermes", "qwen3"))


def plan(model=THINKS, **fields: Any):
    """How the output of a chat is read."""
    limits: dict[str, Any] = {"num_rings": 64, "ring_capacity": 1024, "lenient": False}
    body = json.dumps(HI | fields).encode()
    return RequestReader(model, **limits).read_chat(body, [], ready(max_model_len=4000), 0).generation.output


@pytest.mark.parametrize(
    ("fields", "of_stream", "of_whole"),
    [
        ({}, APART, APART),
        ({"include_reasoning": True}, APART, APART),
        ({"include_reasoning": False}, NOWHERE, NOWHERE),
        ({"separate_reasoning": True}, APART, APART),
        ({"separate_reasoning": False}, IN_TEXT, IN_TEXT),
        ({"reasoning_format": "none"}, IN_TEXT, IN_TEXT),
        ({"reasoning_format": "auto"}, APART, APART),
        ({"reasoning_format": "deepseek"}, APART, APART),
        ({"reasoning_format": "deepseek-legacy"}, IN_TEXT, APART),
        ({"reasoning_format": "none", "separate_reasoning": False}, IN_TEXT, IN_TEXT),
        ({"reasoning_format": "auto", "include_reasoning": False}, NOWHERE, NOWHERE),
        ({"separate_reasoning": True, "include_reasoning": False}, NOWHERE, NOWHERE),
        ({"reasoning": {"exclude": True}}, NOWHERE, NOWHERE),
        ({"reasoning": {"exclude": False}}, APART, APART),
        ({"reasoning": {"exclude": True}, "include_reasoning": False}, NOWHERE, NOWHERE),
    ],
)
def test_places(fields, of_stream, of_whole):
    """Of a stream and of a whole answer; null is absent."""
    for stream, place in ((True, of_stream), (False, of_whole)):
        assert plan(stream=stream, **fields).reasoning == ReasoningView(place)
        at_once = plan(stream=stream, stream_reasoning=False, **fields).reasoning
        assert at_once == ReasoningView(place, at_once=True)
    silent = dict.fromkeys(("include_reasoning", "separate_reasoning", "stream_reasoning", "reasoning_format"))
    for nothing in (None, {}, {"exclude": None, "effort": None}):
        assert plan(reasoning=nothing, **silent).reasoning == ReasoningView()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_format": "qwen"}, "reasoning_format"),
        ({"reasoning_format": "none", "separate_reasoning": True}, "separate_reasoning"),
        ({"reasoning_format": "auto", "separate_reasoning": False}, "separate_reasoning"),
        ({"include_reasoning": False, "separate_reasoning": False}, "separate_reasoning"),
        ({"include_reasoning": False, "reasoning_format": "none"}, "reasoning_format"),
        ({"reasoning": {"exclude": True}, "reasoning_format": "none"}, "reasoning_format"),
        ({"include_reasoning": True, "reasoning": {"exclude": True}}, "reasoning.exclude"),
    ],
)
def test_what_cannot_be_followed_is_refused(fields, param):
    """An unknown format, and two fields that ask for different places: the message names both."""
    with pytest.raises(Refusal) as caught:
        plan(**fields)
    assert caught.value.param == param
    assert all(name in caught.value.message for name in fields)


def test_a_field_is_followed_beside_special_tokens():
    """Else a chat that shows these is not read, and shows all that the model writes."""
    assert plan(skip_special_tokens=False) is None
    fields = {"include_reasoning": False, "separate_reasoning": False, "stream_reasoning": False}
    for (name, value), stream in itertools.product(fields.items(), (False, True)):
        assert plan(skip_special_tokens=False, stream=stream, **{name: value}) is not None, name


def test_a_model_without_reasoning_has_none_to_show():
    """All fields are taken; its output is text."""
    assert plan(MODEL, include_reasoning=False, stream_reasoning=False) is None
