"""What a job may ask for: every error is named, with its field, its constraint and what was sent."""

from __future__ import annotations

import dataclasses
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.protocols.fields import FieldReader
from rbee.server.protocols.jobs.reader import JobReader, read_body
from rbee.server.protocols.jobs.refusals import InvalidJob, answer
from rbee.server.protocols.jobs.schemas import JobBody
from rbee.server.text.served_model import load_synthetic
from tests.server.protocols.jobs.events_parts import kinds, text_of
from tests.server.protocols.jobs.jobs_parts import JOBS, SHORT, JobClient, refusal_of
from tests.server.protocols.parameters_parts import ready
from tests.server.server_parts import expected


def errors_of(client, body, **headers):
    """(field, constraint, what was sent) of each error; None for a value that is not repeated."""
    status, answer_headers, content = client.ask("POST", JOBS, body, headers)
    assert (status, answer_headers["content-type"]) == (400, "application/json")
    answer = json.loads(content)
    assert list(answer) == ["errors"]
    for error in answer["errors"]:
        assert set(error) - {"value"} == {"field", "constraint", "message"}
        assert error["field"].partition("[")[0] in error["message"] or error["field"] == "body"
    return [(error["field"], error["constraint"], error.get("value")) for error in answer["errors"]]


def test_all_errors_at_once(client):
    """Unknown fields, wrong types and values outside of their limits, in one answer."""
    body = {
        "prompt": "",
        "max_tokens": 2049,
        "temperature": "hot",
        "top_p": 1.5,
        "top_k": -1,
        "min_p": -0.5,
        "repetition_penalty": 0,
        "stop": ["", "x" * 101, "fine"],
        "seed": -1,
        "operation": "train",
        "n": 2,
    }
    assert errors_of(client, body) == [
        ("temperature", "invalid_type", "hot"),
        ("n", "unknown_parameter", 2),
        ("prompt", "length(1..=32768)", None),
        ("max_tokens", "range(1..=2048)", 2049),
        ("top_p", "range(0.0..=1.0)", 1.5),
        ("top_k", "range(0..=2147483647)", -1),
        ("min_p", "range(0.0..=1.0)", -0.5),
        ("repetition_penalty", "range(0.01..=2.0)", 0),
        ("seed", "range(0..=18446744073709551615)", -1),
        ("stop[0]", "bytes(1..=100)", ""),
        ("stop[1]", "bytes(1..=100)", None),
        ("operation", "one_of(infer)", "train"),
    ]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"max_tokens": 0}, ("max_tokens", "range(1..=2048)", 0)),
        ({"max_tokens": 10**400}, ("max_tokens", "range(1..=2048)", None)),
        ({"temperature": 2.1}, ("temperature", "range(0.0..=2.0)", 2.1)),
        ({"temperature": -0.1}, ("temperature", "range(0.0..=2.0)", -0.1)),
        ({"repetition_penalty": 2.5}, ("repetition_penalty", "range(0.01..=2.0)", 2.5)),
        ({"seed": 2**64}, ("seed", "range(0..=18446744073709551615)", 2**64)),
        ({"stop": ["a", "b", "c", "d", "e"]}, ("stop", "count(0..=4)", None)),
        ({"stop": ["é" * 51]}, ("stop[0]", "bytes(1..=100)", "é" * 51)),
        ({"stop": "word"}, ("stop", "invalid_type", "word")),
        ({"prompt": "x" * 32769}, ("prompt", "length(1..=32768)", None)),
        ({"prompt": None}, ("prompt", "required", None)),
        ({"prompt": ["a"]}, ("prompt", "invalid_type", None)),
        ({"stream": 1}, ("stream", "invalid_type", 1)),
        ({"prompt": "x" * 9000}, ("prompt", "context_length_exceeded", None)),
    ],
)
def test_limits(client, more, error):
    """Of one field at a time."""
    assert errors_of(client, SHORT | more) == [error]


def test_values_at_the_limits_are_taken(client):
    """All of them together; null is absent."""
    body = {
        "prompt": "p",
        "max_tokens": 1,
        "temperature": 2.0,
        "top_p": 0.0,
        "top_k": 2**31 - 1,
        "min_p": 1.0,
        "repetition_penalty": 2.0,
        "stop": ["x" * 100, "é" * 50, "c", "d"],
        "seed": 2**64 - 1,
        "model": None,
        "device": 0,
        "stream": False,
    }
    assert kinds(client.run(body)) == ["started", "token", "end", "[DONE]"]
    assert len(text_of(client.run({"prompt": "p", "max_tokens": 2048}))) == 2048


def test_output_without_a_limit_has_the_models_length(client):
    """More than the 2048 tokens that may be asked for."""
    *_, end, _ = events = client.run({"prompt": "x" * 8000})
    assert (end["tokens_out"], end["stop_reason"]) == (8192 - 8000, "MAX_TOKENS")
    assert text_of(events) == expected("x" * 8000, 192)


def test_bodies_that_are_no_jobs(client):
    """Each with the status that it has everywhere, in this protocol's words."""
    assert errors_of(client, b"{") == [("body", "invalid_json", None)]
    assert errors_of(client, []) == [("body", "invalid_json", None)]
    assert errors_of(client, SHORT, **{"X-Request-Deadline": "soon"}) == [("X-Request-Deadline", "invalid_value", None)]
    assert refusal_of(client.ask("POST", JOBS, SHORT | {"model": "other"})) == (404, "MODEL_NOT_FOUND", False)
    announced = client.ask("POST", JOBS, b"", {"Content-Length": str(2**22)})
    assert refusal_of(announced) == (413, "REQUEST_TOO_LARGE", False)
    assert refusal_of(client.ask("GET", JOBS)) == (405, "METHOD_NOT_ALLOWED", False)
    assert refusal_of(client.ask("GET", f"{JOBS}/job-1")) == (405, "METHOD_NOT_ALLOWED", False)
    assert refusal_of(client.ask("GET", f"{JOBS}/job-1/x/y")) == (404, "NOT_FOUND", False)
    status, _, content = client.ask("POST", "/v1/cancel", {})
    assert (status, [error["field"] for error in json.loads(content)["errors"]]) == (400, ["job_id"])


def test_answers_stay_small(client):
    """A thousand unknown fields are not a thousand errors."""
    errors = errors_of(client, SHORT | {f"field{number}": 0 for number in range(1000)})
    assert [field for field, _, _ in errors] == [f"field{number}" for number in range(32)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([field.name for field in msgspec.structs.fields(JobBody)]) | st.text()


@given(st.dictionaries(NAMES, JSON, max_size=8), st.booleans())
def test_any_body_is_read_or_refused(given_body, lenient):
    """No field that is blamed is taken, and the answer names each of them once."""
    try:
        body = read_body(given_body, FieldReader(lenient=lenient))
    except InvalidJob as refusal:
        errors = json.loads(bytes(answer(refusal).body))["errors"]
        named = [error["field"] for error in errors]
        assert 1 <= len(named) == len(set(named))
    else:
        assert body.prompt
        assert all(given_body[name] in (None, getattr(body, name)) for name in given_body if hasattr(body, name))


def test_too_many_jobs(start_server):
    """429 with the time after which the next one may succeed; a job that nothing reads yet holds its place."""
    with start_server("--model", "synthetic", "--max-queued-requests", "1", "--max-num-seqs", "1") as server:
        client = JobClient(server)
        jobs, answer = [], client.ask("POST", JOBS, SHORT | {"max_tokens": 2000})
        while answer[0] == 200:
            jobs.append(json.loads(answer[2])["job_id"])
            answer = client.ask("POST", JOBS, SHORT | {"max_tokens": 2000})
        assert jobs
        status, code, retriable = refusal_of(answer)
        assert (status, retriable) == (429, True)
        assert code == code.upper()
        assert int(answer[1]["retry-after"]) >= 1


def test_lenient_server_ignores_unknown_fields(start_server):
    """A header names them; what is known is still checked."""
    with start_server("--model", "synthetic", "--lenient") as server:
        client = JobClient(server)
        status, headers, _ = client.ask("POST", JOBS, SHORT | {"n": 2, "colour": "red"})
        assert (status, headers["warning"]) == (200, '299 - "ignored: n, colour"')
        assert errors_of(client, SHORT | {"colour": "red", "top_k": -1, "min_p": "x"}) == [
            ("min_p", "invalid_type", "x"),
            ("top_k", "range(0..=2147483647)", -1),
        ]


def test_the_protocols_defaults_hold():
    """Not those that the model recommends."""
    recommended = {"temperature": 0.0, "top_p": 0.5, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1}
    model = dataclasses.replace(load_synthetic("m"), sampling_defaults=recommended)
    reader = JobReader(model, num_rings=64, ring_capacity=64, lenient=False)
    sampling = reader.read(b'{"prompt":"p"}', [], ready(max_model_len=10), 0).generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.max_tokens) == (0.0, 1.0, 9)
