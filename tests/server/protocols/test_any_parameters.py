"""Parameters of any value: each is taken and can be run, or is refused by name."""

import array
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rbee.engine import sampler
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.openai import schemas
from rbee.server.streams.generation import Generation
from tests.raw_client import CHAT
from tests.server.protocols.parameters_parts import BOTH, JSON, PARAMETERS, read

LOGITS = np.random.default_rng(0).normal(size=(1, 256)).astype(np.float32) * 30


def outcome(route, fields):
    """What comes of it. What the server takes the engine takes too, and finds a token to draw."""
    try:
        generation = read(route, fields)
    except Refusal as error:
        return error
    assert sampler.invalid(generation.sampling, 256) is None
    row = sampler.Row(sampler.RowSampler(generation.sampling), array.array("I", generation.prompt), 1)
    assert sampler.sample(LOGITS, [row]).valid.all()
    return generation


@pytest.mark.parametrize(("route", "field"), [(route, field) for route in PARAMETERS for field in PARAMETERS[route]])
@given(value=JSON)
@example(value=10**4290)
@example(value=-(10**400))
@example(value=1e308)
@example(value=5e-324)
def test_any_value_is_taken_or_refused_by_name(route, field, value):
    """Whatever a field holds, the request can be run or is refused, and the refusal names the field."""
    result = outcome(route, {field: value})
    if isinstance(result, Refusal):
        assert status_of(result) == 400
        too_long = result.code == "context_length_exceeded" and field in {"max_tokens", "max_completion_tokens"}
        assert re.split(r"[.\[]", result.param or "")[0] == field or too_long
        assert len(result.message) < 400
    else:
        assert isinstance(result, Generation)


@BOTH
@given(data=st.data())
def test_any_object_is_taken_or_refused(route, data):
    """The same for fields of all kinds together: there is an answer, and a refusal names one of them."""
    neutral = schemas.NEUTRAL_CHAT if route == CHAT else schemas.NEUTRAL_COMPLETION
    shape = schemas.ChatRequest if route == CHAT else schemas.CompletionRequest
    names = st.sampled_from([*shape.__struct_fields__, *neutral]) | st.text(max_size=5)
    fields = data.draw(st.dictionaries(names, JSON, max_size=5))
    result = outcome(route, fields)
    assert isinstance(result, Generation) or result.param is not None
