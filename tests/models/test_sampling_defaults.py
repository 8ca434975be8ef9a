"""What counts of a model's recommended sampling parameters."""

from __future__ import annotations

import logging

import pytest

from rbee.models.sampling_defaults import sampling_defaults


def test_the_parameters_that_vllm_takes_count():
    """Others do not, do_sample included; a null says nothing."""
    given = {
        "do_sample": False,
        "temperature": 0.6,
        "top_k": 20.0,
        "top_p": None,
        "max_new_tokens": 9,
        "typical_p": 0.5,
    }
    defaults = sampling_defaults(given | {"min_p": 0, "repetition_penalty": 1.05})
    assert defaults == {"temperature": 0.6, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    assert isinstance(defaults["top_k"], int)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.5),
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", True),
        ("top_k", 2.5),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_value_that_no_request_could_ask_for_is_left_out(name, value, caplog):
    """A warning names it; the others stay."""
    with caplog.at_level(logging.WARNING):
        assert sampling_defaults({name: value, "seed": 1}) == {}
    assert f"recommends {name} {value!r}, which is left out" in caplog.text
