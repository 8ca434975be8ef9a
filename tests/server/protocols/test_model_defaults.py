"""Sampling parameters that the model recommends, and chats that it cannot hold."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rbee.models.sampling_defaults import BOUNDS
from rbee.server.errors import Refusal
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.protocols.parameters import defaults_in_force
from tests.raw_client import CHAT
from tests.server.protocols.parameters_parts import BOTH, HI, MODEL, PROMPT, read, ready

RECOMMENDED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}


def sampling(route, fields):
    """The sampling parameters of a request to a model with recommendations."""
    model = dataclasses.replace(MODEL, sampling_defaults=RECOMMENDED)
    reader = RequestReader(model, num_rings=64, ring_capacity=1024, lenient=False)
    body = json.dumps((HI if route == CHAT else PROMPT) | fields).encode()
    of_route = reader.read_chat if route == CHAT else reader.read_completion
    return of_route(body, [], ready(), 0).generation.sampling


@BOTH
def test_a_silent_request_gets_what_the_model_recommends(route):
    """Null is silent too."""
    for fields in ({}, dict.fromkeys(RECOMMENDED)):
        found = sampling(route, fields)
        assert {name: getattr(found, name) for name in RECOMMENDED} == RECOMMENDED


@BOTH
@pytest.mark.parametrize("name", RECOMMENDED)
def test_a_request_that_speaks_gets_what_it_asks(name, route):
    """Also if it asks for the neutral value; the others stay the model's."""
    neutral = defaults_in_force({})[name]
    found = sampling(route, {name: neutral})
    assert {key: getattr(found, key) for key in RECOMMENDED} == RECOMMENDED | {name: neutral}


@BOTH
@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items())
def test_every_recommendation_that_counts_can_be_asked_for(name, bounds, route):
    """A model's default is never refused as if the client had sent it."""
    for value in bounds:
        assert getattr(read(route, {name: value}).sampling, name) == max(value, 0)


def test_the_defaults_in_force_are_complete():
    """What the model does not recommend has the neutral value."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert defaults_in_force({}) == neutral
    assert defaults_in_force({"top_k": 20}) == neutral | {"top_k": 20}


def test_a_broken_chat_template_is_the_reason_of_the_refusal():
    """The remedy is the other route."""
    model = dataclasses.replace(MODEL, chat_template=None, no_chat_reason="has a chat template that does not compile")
    reader = RequestReader(model, num_rings=64, ring_capacity=1024, lenient=False)
    with pytest.raises(Refusal, match=r"has a chat template that does not compile; use /v1/completions\."):
        reader.read_chat(json.dumps(HI).encode(), [], ready(), 0)
