"""Requests for vectors: what is taken, what is refused, and which field a refusal names."""

from __future__ import annotations

import dataclasses
import json
from array import array

import pytest

from rbee.models.pooling import ModelPooling, NoPooling
from rbee.pooling_params import PoolingParams
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.openai.embeddings import MAX_INPUTS, MAX_VALUES, EmbeddingsReader, render
from tests.raw_client import CHAT, COMPLETIONS
from tests.server.protocols.parameters_parts import MODEL, ready
from tests.server.protocols.parameters_parts import refusal as generation_refusal

LIMIT = ready().max_model_len
MEAN = ModelPooling("mean")


def read(pooling=MEAN, *, lenient=False, hidden_size=32, **fields):
    """What a request with these fields asks for, of a model with this pooling, whose tokens are bytes."""
    model = dataclasses.replace(MODEL, pooling=pooling)
    reader = EmbeddingsReader(model, GenerationReader(model, num_rings=64, ring_capacity=64), lenient=lenient)
    body = json.dumps({"input": "hi", **fields}).encode()
    return reader.read(body, [], ready(hidden_size=hidden_size), 7)


def refusal(**options):
    """The error for these."""
    with pytest.raises(Refusal) as caught:
        read(**options)
    assert status_of(caught.value) == 400
    return caught.value


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("hi", [[104, 105]]),
        (["hi"], [[104, 105]]),
        (["hi", "é"], [[104, 105], [195, 169]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2, 3]], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_inputs(given, prompts):
    """A text, token ids, or a list of one of these; a list of token ids is one input."""
    assert read(input=given).embeddings.prompts == prompts


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ("", "input", "invalid_value"),
        ([], "input", "invalid_value"),
        (["a", ""], "input[1]", "invalid_value"),
        ([[1], []], "input[1]", "invalid_value"),
        (["a", 1], "input", "invalid_type"),
        ([1, "a"], "input", "invalid_type"),
        (["a", [1]], "input", "invalid_type"),
        ([1, [1]], "input", "invalid_type"),
        ([[1], [1, "a"]], "input[1]", "invalid_type"),
        ([[[1]]], "input[0]", "invalid_type"),
        ([True], "input", "invalid_type"),
        ([1.5], "input", "invalid_type"),
        ([{"text": "a"}], "input", "invalid_type"),
        ([None], "input", "invalid_type"),
        (7, "input", "invalid_type"),
        ({"a": 1}, "input", "invalid_type"),
        (None, "input", "missing_parameter"),
        ([1, 256], "input", "invalid_value"),
        ([[1], [-1]], "input[1]", "invalid_value"),
    ],
)
def test_what_is_no_input(given, param, code):
    """The sentence names the input that is to blame."""
    refused = refusal(input=given)
    assert (refused.param, refused.code) == (param, code)
    assert refused.message.startswith(param)


@pytest.mark.parametrize("given", ["a" * (LIMIT + 1), ["a", "a" * (LIMIT + 1)], [[1] * (LIMIT + 1)], [1] * (LIMIT + 1)])
def test_input_that_is_too_long(given):
    """With OpenAI's code and both numbers; one as long as the model is taken, because nothing is generated."""
    refused = refusal(input=given)
    assert refused.code == "context_length_exceeded"
    assert str(LIMIT) in refused.message
    assert str(LIMIT + 1) in refused.message
    [prompt] = read(input="a" * LIMIT).embeddings.prompts
    assert len(prompt) == LIMIT


@pytest.mark.parametrize("one", ["a", [1]])
def test_too_many_inputs(one):
    """As many as OpenAI takes, or fewer of a model with long vectors."""
    assert len(read(input=[one] * MAX_INPUTS).embeddings.prompts) == MAX_INPUTS
    assert f"{MAX_INPUTS + 1} inputs" in refusal(input=[one] * (MAX_INPUTS + 1)).message
    refused = refusal(input=[one] * 513, hidden_size=MAX_VALUES // 512)
    assert refused.param == "input"
    assert "may have 512" in refused.message
    assert len(read(ModelPooling("mean", dimensions=()), input=[one] * 513, hidden_size=4096, dimensions=8)) == 3


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"encoding_format": 1}, "encoding_format", "invalid_type"),
        ({"dimensions": 8}, "dimensions", "invalid_value"),
        ({"dimensions": "8"}, "dimensions", "invalid_type"),
        ({"priority": 101}, "priority", "invalid_value"),
        ({"priority": -101}, "priority", "invalid_value"),
        ({"cache_salt": "x" * 257}, "cache_salt", "invalid_value"),
        ({"deadline": "soon"}, "deadline", "invalid_value"),
        ({"input_type": "query"}, "input_type", "unknown_parameter"),
        ({"inputs": "a"}, "inputs", "unknown_parameter"),
        ({"model": "other"}, "model", "model_not_found"),
    ],
)
def test_other_fields_are_checked(fields, param, code):
    """None is silently ignored."""
    with pytest.raises(Refusal) as caught:
        read(**fields)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_a_lenient_server_names_what_it_ignores():
    """As on the other routes."""
    assert read(lenient=True, input_type="query").ignored == ["input_type"]


def test_a_request_says_little():
    """Null is absent; a label changes nothing."""
    plain, with_nulls = read(), read(encoding_format=None, dimensions=None, user="me", priority=None)
    assert plain.embeddings == with_nulls.embeddings
    assert plain.encoding_format == "float"
    assert (plain.embeddings.received_ns, plain.embeddings.num_tokens) == (7, 2)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", ["mean", "last", "cls"])
def test_pooling_is_what_the_model_says(method, normalize):
    """A request cannot choose it."""
    asked = read(ModelPooling(method, normalize)).embeddings.pooling
    assert asked == PoolingParams(method=method, normalize=normalize)


@pytest.mark.parametrize(
    ("allowed", "taken", "refused"),
    [((), [1, 31], [0, 33, -1]), ((8, 16), [8, 16], [1, 9, 33]), (None, [], [1, 31, 33])],
)
def test_dimensions_are_for_models_that_say_so(allowed, taken, refused):
    """Any number that is less, or one of a list; all that a vector has changes nothing."""
    pooling = ModelPooling("mean", dimensions=allowed)
    for dimensions in taken:
        assert read(pooling, dimensions=dimensions).embeddings.pooling.dimensions == dimensions
    for dimensions in refused:
        assert refusal(pooling=pooling, dimensions=dimensions).param == "dimensions"
    assert read(pooling, dimensions=32).embeddings.pooling.dimensions == 0


def test_a_model_without_pooling_is_refused():
    """With the reason, and the option that helps if there is one."""
    refused = refusal(pooling=NoPooling())
    assert (refused.param, refused.code) == ("model", "no_pooling")
    assert "--pooling" in refused.message
    assert "a Dense module" in refusal(pooling=NoPooling("has a Dense module")).message


def test_a_runner_without_hidden_states_is_refused():
    """Whatever the model says."""
    assert refusal(hidden_size=0).code == "no_pooling"


def test_numbers_of_an_answer_are_exactly_the_vectors():
    """The float32 that base64 holds is the number in JSON, bit for bit."""
    vectors = [array("f", [1 / 3, -0.0, 1e-42, -3.4e38]), array("f", [0.1] * 4)]
    shown = json.loads(b"".join(render(vectors, "float", "m", 5)))
    assert [array("f", entry["embedding"]).tobytes() for entry in shown["data"]] == [v.tobytes() for v in vectors]
    assert shown == {
        "object": "list",
        "data": [{"object": "embedding", "index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)],
        "model": "m",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_a_large_answer_is_made_in_pieces():
    """So that no stream waits for all of it; together they are one answer."""
    vectors = [array("f", [n] * 1000) for n in range(40)]
    pieces = list(render(vectors, "base64", "m", 5))
    assert len(pieces) == 8 + 1
    shown = json.loads(b"".join(pieces))
    assert [entry["index"] for entry in shown["data"]] == list(range(40))
    assert shown["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_a_model_without_a_head_generates_nothing():
    """Texts and chats are refused, and the route that it has is named."""
    for route in (CHAT, COMPLETIONS):
        refused = generation_refusal(route, {}, has_head=False)
        assert (refused.param, refused.code) == ("model", "no_output_head")
        assert "/v1/embeddings" in refused.message
