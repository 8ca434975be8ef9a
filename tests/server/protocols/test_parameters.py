"""Parameters as they are read: which values are taken and what they mean, which are refused and what is named."""

import array
import contextlib
import dataclasses
import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbee.engine import sampler
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.openai import schemas
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.protocols.parameters import read_deadline
from rbee.server.streams.generation import Generation
from tests.raw_client import CHAT, COMPLETIONS
from tests.server.protocols.parameters_parts import BOTH, HI, HI_TOKENS, MODEL, PARAMETERS, PROMPT, TOMORROW, ready


def read(route, fields, *, deadlines=(), num_rings=64, ring_capacity=1024, end_token_ids=frozenset({7, 8}), **engine):
    """The generation for these fields, as the route reads it."""
    model = dataclasses.replace(MODEL, end_token_ids=end_token_ids)
    reader = RequestReader(model, num_rings=num_rings, ring_capacity=ring_capacity, lenient=False)
    body = json.dumps((HI if route == CHAT else PROMPT) | fields).encode()
    of_route = reader.read_chat if route == CHAT else reader.read_completion
    return of_route(body, list(deadlines), ready(**engine)).generation


def refusal(route, fields, **more):
    """The error for these fields."""
    with pytest.raises(Refusal) as caught:
        read(route, fields, **more)
    return caught.value


# ---- what is refused -------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 2**31}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"typical_p": 1.1}, "typical_p"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 10.1}, "repetition_penalty"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
        ({"logit_bias": {"5": -101}}, "logit_bias"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"05": 1}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {"5": None}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [256]}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"allowed_token_ids": ["5"]}, "allowed_token_ids[0]"),
        ({"stop_token_ids": [256]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids"),
        ({"stop_token_ids": ["1"]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"n": 3, "best_of": 1}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 100}, "min_tokens"),
        ({"min_tokens": 1, "allowed_token_ids": [7, 9], "stop_token_ids": [9]}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": [*range(256)]}, "min_tokens"),
        ({"priority": 101}, "priority"),
        ({"priority": -101}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"deadline": "tomorrow"}, "deadline"),
        ({"deadline": ""}, "deadline"),
        ({"deadline": "2030-01-31T12:00:00"}, "deadline"),
        ({"deadline": 1.5}, "deadline"),
        ({"logprobs": "yes"}, "logprobs"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(route, fields, param):
    """Each value that is out of its range or of a wrong type is a 400 whose param and message name the field."""
    error = refusal(route, fields)
    assert (status_of(error), error.param) == (400, param)
    assert param.partition("[")[0] in error.message
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"logprobs": 3}, "logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        (CHAT, {"top_logprobs": 1}, "top_logprobs"),
        (CHAT, {"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"logprobs": -1}, "logprobs"),
        (COMPLETIONS, {"logprobs": True}, "logprobs"),
        (COMPLETIONS, {"echo": 1}, "echo"),
        (COMPLETIONS, {"echo": False, "max_tokens": 0}, "max_tokens"),
        (COMPLETIONS, {"echo": True, "max_tokens": 0, "min_tokens": 1}, "min_tokens"),
        (COMPLETIONS, {"min_tokens": 17}, "min_tokens"),  # by default there are 16
    ],
)
def test_refusals_of_one_route(route, fields, param):
    """The same for what only one of the routes has, or has in another shape."""
    error = refusal(route, fields)
    assert (status_of(error), error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(("route", "field"), [(CHAT, "top_logprobs"), (COMPLETIONS, "logprobs")])
def test_logprobs_have_to_fit_the_ring(route, field):
    """A token and its notes are published at once: what can never fit is refused with the option's name."""
    asked = {"logprobs": True} if route == CHAT else {}
    assert read(route, asked | {field: 3}, ring_capacity=4).sampling.num_logprobs == 3
    error = refusal(route, asked | {field: 4}, ring_capacity=4)
    assert (status_of(error), error.param) == (400, field)
    assert "--ring-capacity" in error.message
    assert read(route, asked | {field: 3, "stop": "x"}, ring_capacity=5).sampling.num_logprobs == 3
    assert refusal(route, asked | {field: 3, "stop": "x"}, ring_capacity=4).param == field
    if route == COMPLETIONS:
        assert read(route, {field: 3, "echo": True}, ring_capacity=7).sampling.num_prompt_logprobs == 3
        assert "At most 2 is possible" in refusal(route, {field: 3, "echo": True}, ring_capacity=6).message


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "wanted"), [(10, 91, 101), (100, 1, 101), (100, 0, 101), (5000, 10, 5010)]
)
def test_too_long_says_both_numbers(prompt_tokens, max_tokens, wanted):
    """A context that cannot fit is refused with the model's length and with what was asked for."""
    error = refusal(COMPLETIONS, {"prompt": [1] * prompt_tokens, "max_tokens": max_tokens, "echo": True})
    assert (status_of(error), error.code, error.param) == (400, "context_length_exceeded", "prompt")
    assert "100 tokens" in error.message
    assert str(wanted) in error.message
    long_chat = [{"role": "user", "content": "x" * 200}]
    assert refusal(CHAT, {"messages": long_chat}).param == "messages"


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompt_is_refused(prompt):
    """There is nothing to continue."""
    assert refusal(COMPLETIONS, {"prompt": prompt}).param == "prompt"


# ---- what is taken ---------------------------------------------------------------------------------------------


@BOTH
def test_null_means_absent(route):
    """A client that sends every parameter as null gets the defaults, which ask for nothing but tokens."""
    generation = read(route, dict.fromkeys(PARAMETERS[route]))
    plain = SamplingParams(
        max_tokens=16 if route == COMPLETIONS else 100 - HI_TOKENS,
        seed=generation.sampling.seed,
        stop_token_ids=(7, 8),
    )
    assert generation.sampling == plain
    assert (generation.n, generation.echo, generation.show_output) == (1, None, True)
    assert (generation.priority, generation.deadline_ns, generation.cache_salt) == (0, 0, "")


@BOTH
@pytest.mark.parametrize(
    ("field", "lowest", "highest"),
    [
        ("temperature", 0, 2),
        ("top_p", 1e-9, 1),
        ("top_k", 1, 2**31 - 1),
        ("min_p", 0, 1),
        ("typical_p", 1e-9, 1),
        ("frequency_penalty", -2, 2),
        ("presence_penalty", -2, 2),
        ("repetition_penalty", 0.01, 10),
        ("seed", 0, 2**63 - 1),
        ("min_tokens", 0, 16),
        ("max_tokens", 1, 80),
    ],
)
def test_ends_of_the_ranges(route, field, lowest, highest):
    """The smallest and the largest value are taken, and go to the engine as they are."""
    for value in (lowest, highest):
        assert getattr(read(route, {field: value}).sampling, field) == value


@BOTH
def test_sizes_at_their_limit(route):
    """So many choices, biases, stop ids and characters of a salt are possible."""
    biases = {str(token_id): -100 for token_id in range(1024)}
    generation = read(
        route,
        {"n": 64, "logit_bias": biases, "stop_token_ids": [1] * 256, "cache_salt": "x" * 256, "priority": -100},
        vocab_size=1024,
    )
    assert generation.n == 64
    assert generation.sampling.logit_bias == dict.fromkeys(range(1024), -100.0)
    assert (generation.cache_salt, generation.priority) == ("x" * 256, -100)


@BOTH
def test_sizes_above_their_limit(route):
    """One more is refused, also by a server that has room for more."""
    biases = {str(token_id): -100 for token_id in range(1025)}
    assert "at most 1024" in refusal(route, {"logit_bias": biases}, vocab_size=1025).message
    assert read(route, {"n": 128}, num_rings=192).n == 128
    assert "from 1 to 128" in refusal(route, {"n": 129}, num_rings=192).message


@BOTH
def test_other_spellings(route):
    """A top_k of -1 keeps all, as 0 does; end-of-sequence ids join the client's, unless they are to be ignored."""
    assert read(route, {"top_k": -1}).sampling.top_k == 0
    assert read(route, {"stop_token_ids": [9, 3]}).sampling.stop_token_ids == (3, 7, 8, 9)
    assert read(route, {"stop_token_ids": [9, 3], "ignore_eos": True}).sampling.stop_token_ids == (3, 9)
    assert read(route, {"best_of": 3, "n": 3}).n == 3


@BOTH
def test_without_a_seed_the_server_picks_one(route):
    """Two requests do not draw the same numbers by default."""
    assert read(route, {}).sampling.seed != read(route, {}).sampling.seed


def test_logprobs():
    """A chat says whether and how many, a completion says how many; the prompt has some only where it is echoed."""

    def numbers(route, **fields):
        sampling = read(route, fields).sampling
        return sampling.num_logprobs, sampling.num_prompt_logprobs

    assert numbers(CHAT, logprobs=False, top_logprobs=0) == (None, None)
    assert numbers(CHAT, logprobs=True) == (0, None)
    assert numbers(CHAT, logprobs=True, top_logprobs=20) == (20, None)
    assert numbers(COMPLETIONS, logprobs=0) == (0, None)
    assert numbers(COMPLETIONS, logprobs=20) == (20, None)
    assert numbers(COMPLETIONS, logprobs=0, echo=True) == (0, 0)
    assert numbers(COMPLETIONS, echo=True) == (None, None)
    assert read(COMPLETIONS, {"logprobs": 20}, vocab_size=12).sampling.num_logprobs == 12, "there are no more tokens"


@pytest.mark.parametrize("prompt", ["hi", [104, 105]])
def test_echo_without_output(prompt):
    """A client may ask for its prompt alone: the one token that the engine has to make is not to be shown."""
    generation = read(COMPLETIONS, {"prompt": prompt, "echo": True, "max_tokens": 0})
    assert generation.echo is not None
    assert (generation.show_output, generation.sampling.max_tokens) == (False, 1)
    assert generation.prompt_text == (prompt if isinstance(prompt, str) else None)
    assert read(COMPLETIONS, {"echo": True, "max_tokens": 1}).show_output


# ---- deadlines -------------------------------------------------------------------------------------------------

NOW = datetime(2030, 1, 31, 12, 0, 0, tzinfo=UTC)
SECOND = 10**9


def deadline(field=None, *headers):
    """CLOCK_MONOTONIC's ns of a deadline, when it is 7 s by that clock and NOW by the wall's."""
    return read_deadline(field, headers, wall_ns=int(NOW.timestamp()) * SECOND, monotonic_ns=7 * SECOND)


@pytest.mark.parametrize(
    "text",
    [
        "2030-01-31T12:00:30Z",
        "2030-01-31T12:00:30.000000+00:00",
        "2030-01-31T14:00:30+02:00",
        "2030-01-31 06:30:30-05:30",
        "20300131T120030Z",
    ],
)
def test_deadline_is_a_time_of_the_engines_clock(text):
    """ISO 8601 in any zone, from the field, the header or both, becomes the same instant."""
    assert deadline(text) == deadline(None, text) == deadline(text, "2030-01-31T12:00:30Z", text) == 37 * SECOND


def test_no_deadline():
    """Without one, or with one in many years, there is none."""
    assert deadline() == deadline("2100-01-01T00:00:00Z") == deadline("9999-12-31T23:59:59.999999-23:59") == 0


@pytest.mark.parametrize("text", ["2030-01-31T12:00:00Z", "2030-01-31T11:59:59.999999Z", "0001-01-01T00:00:00+23:59"])
def test_passed_deadline_is_a_timeout(text):
    """What has passed is answered at once, with the status and the code that the protocol has for it."""
    with pytest.raises(Refusal) as caught:
        deadline(None, text)
    assert (status_of(caught.value), caught.value.code) == (408, "REQUEST_TIMEOUT")


def test_deadlines_that_differ():
    """Two times are no deadline."""
    for times in [("2030-01-31T12:00:30Z", "2030-01-31T12:00:31Z"), (None, "2030-02-01T00Z", "2030-02-02T00Z")]:
        with pytest.raises(Refusal) as caught:
            deadline(*times)
        assert (status_of(caught.value), caught.value.param) == (400, "deadline")


@pytest.mark.parametrize("text", ["soon", "2030-01-31T12:00:30", "12:00", "1900000000", "2030-02-30T00:00:00Z"])
def test_header_is_named(text):
    """A header that is no time with a zone is a 400 that names it."""
    with pytest.raises(Refusal) as caught:
        deadline(None, text)
    assert (status_of(caught.value), caught.value.param) == (400, "X-Request-Deadline")
    assert text in caught.value.message


@settings(deadline=None)
@given(st.datetimes(timezones=st.timezones() | st.just(timezone(timedelta(hours=23, minutes=59)))), st.text())
def test_any_time_is_taken_or_refused(when, text):
    """No time, however far, and no text causes anything but an Refusal."""
    for given_text in (when.isoformat(), text):
        with contextlib.suppress(Refusal):
            assert 0 <= deadline(given_text) < 2**63


# ---- anything at all -------------------------------------------------------------------------------------------

NUMBERS = st.integers(-3, 130) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from(["1", TOMORROW.isoformat()])
BIASES = st.dictionaries(st.integers(-1, 300).map(str) | st.text(max_size=3), NUMBERS | SCALARS, max_size=3)
JSON = st.recursive(
    SCALARS | BIASES | st.lists(st.integers(-1, 300), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


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
@settings(deadline=None)
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
        assert result.param.partition("[")[0] == field or too_long
        assert len(result.message) < 400
    else:
        assert isinstance(result, Generation)


@BOTH
@settings(deadline=None)
@given(data=st.data())
def test_any_object_is_taken_or_refused(route, data):
    """The same for fields of all kinds together: there is an answer, and a refusal names one of them."""
    neutral = schemas.NEUTRAL_CHAT if route == CHAT else schemas.NEUTRAL_COMPLETION
    shape = schemas.ChatRequest if route == CHAT else schemas.CompletionRequest
    names = st.sampled_from([*shape.__struct_fields__, *neutral]) | st.text(max_size=5)
    fields = data.draw(st.dictionaries(names, JSON, max_size=5))
    result = outcome(route, fields)
    assert isinstance(result, Generation) or result.param is not None
