"""Hidden states beside logits: which rows they are of, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.runners.native.native_parts import Chunk, arrays, minimal, minimal_arguments, minimal_shape

HIDDEN = 16  # of the minimal model


def rows_of(*rows: int) -> dict[str, Any]:
    """The arguments that ask for the hidden states of these rows of a step."""
    return {"hidden_rows": np.array(rows, np.int64), "hidden_states": np.full((len(rows), HIDDEN), np.nan, np.float32)}


def test_logits_are_made_of_the_hidden_states():
    """The head, which is the embedding here, times the hidden state of the row."""
    model, step, wanted = minimal(), arrays(Chunk(range(20), [1, 0], 0, 20)), rows_of(*range(20))
    logits = model.execute(**step, **wanted)
    _, rows, cols, source, *_ = minimal_arguments()["matrices"]["embedding"]
    head = source.view(np.float32).reshape(rows, cols)
    assert np.allclose(logits, wanted["hidden_states"] @ head.T, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 20])
def test_rows_may_come_in_any_order_and_twice(size):
    """Whether or not the step is so small that its threads prepare its rows each for itself, with or without logits."""
    step, every = arrays(Chunk(range(20), [1, 0], 0, size)), rows_of(*range(size))
    plain = minimal().execute(**step).copy()
    assert np.array_equal(minimal().execute(**step, **every), plain), "they change no logits"
    rows = [size - 1, *range(size - 1, -1, -1), 0]
    some = rows_of(*rows)
    nothing = minimal().execute(**step | {"logits_rows": np.array([], np.int64)}, **some)
    assert nothing.shape == (0, 20)
    assert np.array_equal(some["hidden_states"], every["hidden_states"][rows])


def test_a_step_without_hidden_states():
    """No rows are asked for as well by an empty array."""
    step = arrays(Chunk(range(3), [0], 0, 3))
    assert np.array_equal(minimal().execute(**step, **rows_of()), minimal().execute(**step))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (rows_of(3), "A row of hidden states is not in the step."),
        (rows_of(0, -1), "A row of hidden states is not in the step."),
        (rows_of(0) | {"hidden_states": None}, "hidden_rows and hidden_states need each other."),
        (rows_of(0) | {"hidden_rows": None}, "hidden_rows and hidden_states need each other."),
        (
            rows_of(0, 1) | {"hidden_rows": np.array([0], np.int64)},
            "hidden_states must have a row of hidden_size for each of hidden_rows.",
        ),
        (
            {"hidden_rows": np.array([0], np.int64), "hidden_states": np.zeros((1, HIDDEN - 1), np.float32)},
            "hidden_states must have a row of hidden_size for each of hidden_rows.",
        ),
    ],
)
def test_rows_that_lead_outside_are_refused(changes, sentence):
    """Before anything is computed or written."""
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        minimal().execute(**arrays(Chunk(range(3), [0], 0, 3)), **changes)
    states = changes["hidden_states"]
    assert states is None or np.isnan(states).all() or not states.any()


def test_other_arrays_are_refused():
    """What the kernels would have to copy first, or cannot write to."""
    step, wanted = arrays(Chunk(range(3), [0], 0, 3)), rows_of(0)
    frozen = wanted["hidden_states"].copy()
    frozen.flags.writeable = False
    for states in (wanted["hidden_states"].astype(np.float64), np.zeros((1, 32), np.float32)[:, ::2], frozen):
        with pytest.raises(TypeError):
            minimal().execute(**step, **wanted | {"hidden_states": states})
    with pytest.raises(TypeError):
        minimal().execute(**step, **wanted | {"hidden_rows": np.array([0], np.int32)})


def test_factors_of_logits_are_not_in_hidden_states():
    """They belong to the head."""
    step, plain, scaled = arrays(Chunk(range(3), [0], 0, 3)), rows_of(0, 1, 2), rows_of(0, 1, 2)
    minimal().execute(**step, **plain)
    minimal(shape=minimal_shape(logit_scale=3.0)).execute(**step, **scaled)
    assert np.array_equal(plain["hidden_states"], scaled["hidden_states"])
