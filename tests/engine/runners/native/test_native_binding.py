"""The binding of the native model: what it does at the edges, and that it refuses whatever would lead outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rbee.engine import _kernels  # noqa: TID251 - what is under test
from rbee.transport import Progress
from tests.engine.runners.native.native_parts import (
    Chunk,
    arrays,
    minimal,
    minimal_arguments,
    minimal_shape,
    minimal_weights,
    stored,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_minimal_model_computes():
    """What the refusals below spoil one by one is a model that works."""
    logits = minimal().execute(**arrays(Chunk(range(20), [1, 0], 0, 20)))
    assert logits.shape == (20, 20)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0


def test_a_step_without_logits():
    """A chunk in the middle of a prompt wants none, and is in the cache for the next one."""
    model, step = minimal(), arrays(Chunk(range(20), [1, 0], 0, 20))
    expected_logits = minimal().execute(**step)[12:].copy()
    nothing = model.execute(**arrays(Chunk(range(20), [1, 0], 0, 12)) | {"logits_rows": np.array([], np.int64)})
    assert nothing.shape == (0, 20)
    assert np.array_equal(model.execute(**arrays(Chunk(range(20), [1, 0], 12, 20))), expected_logits)


def test_rows_of_logits_may_come_in_any_order_and_twice():
    """The row that samples comes first, and may be wanted again to score a prompt."""
    step = arrays(Chunk(range(20), [1, 0], 0, 20))
    expected_logits = minimal().execute(**step).copy()
    rows = np.array([19, *range(19, -1, -1), 3, 3], np.int64)
    assert np.array_equal(minimal().execute(**step | {"logits_rows": rows}), expected_logits[rows])


def other_matrix(name: str, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> dict[str, Any]:
    """The minimal model's matrices, with one changed."""
    matrices = minimal_arguments()["matrices"]
    return {"matrices": matrices | {name: change(matrices[name])}}


def without(kind: str, name: str) -> dict[str, Any]:
    """The minimal model's matrices or vectors, with one left out."""
    return {kind: {key: value for key, value in minimal_arguments()[kind].items() if key != name}}


def other_vector(name: str, size: int) -> dict[str, Any]:
    """The minimal model's vectors, with one more or another one."""
    return {"vectors": minimal_arguments()["vectors"] | {name: np.ones(size, np.float32)}}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (without("matrices", "layers.0.up"), "The matrix 'layers.0.up' is missing."),
        (without("matrices", "embedding"), "The matrix 'embedding' is missing."),
        (without("vectors", "final_norm"), "The vector 'final_norm' is missing."),
        (without("vectors", "layers.0.mlp_norm"), "The vector 'layers.0.mlp_norm' is missing."),
        (
            {"layers": [(0, 0), (0, 0)]},
            "The vector 'layers.1.attention_norm' is missing.",
        ),
        (
            other_matrix("layers.0.key", lambda _: stored(np.ones((32, 16), np.float32))),
            "The matrix 'layers.0.key' is 32 x 16, but the model needs 16 x 16.",
        ),
        (
            other_matrix("embedding", lambda _: stored(np.ones((19, 16), np.float32))),
            "The matrix 'embedding' is 19 x 16, but the model needs 20 x 16.",
        ),
        (
            {"matrices": minimal_arguments()["matrices"] | {"head": stored(np.ones((20, 15), np.float32))}},
            "The matrix 'head' is 20 x 15, but the model needs 20 x 16.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (*matrix[:3], matrix[3][:-1], *matrix[4:])),
            r"The matrix 'layers.0.gate' cannot be packed: 8 x 16 weights as F32 have 512 bytes, not 511.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (1, *matrix[1:])),
            "The matrix 'layers.0.gate' cannot be packed: F32 would lose something as float16; float32 holds it.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (99, *matrix[1:])),
            "The matrix 'layers.0.gate' cannot be packed: There is no weight format 99.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (3, *matrix[1:])),
            "The matrix 'layers.0.gate' cannot be packed: q4 has blocks of 32 columns, which 16 .* leave them floats.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (*matrix[:5], np.zeros(7, np.uint32))),
            "The row order of 'layers.0.gate' must have an entry per row.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (*matrix[:5], np.full(8, 8, np.uint32))),
            "The matrix 'layers.0.gate' cannot be packed: row_order names row 8 of 8.",
        ),
        (
            other_vector("layers.0.attention_norm", 15),
            "The vector 'layers.0.attention_norm' has 15 numbers, but the model needs 16.",
        ),
        (other_vector("layers.0.query_bias", 31), "The vector 'layers.0.query_bias' has 31 numbers, but .* needs 32."),
        (other_vector("layers.0.up_bias", 9), "The vector 'layers.0.up_bias' has 9 numbers, but the model needs 8."),
        (other_vector("layers.0.key_norm", 8), "The vector 'layers.0.key_norm' has 8 numbers, but .* needs 16."),
        (other_vector("layers.0.post_mlp_norm", 16), "All layers must have both norms behind their halves, or none."),
        ({"rotaries": [([1.0] * 9, 1.0)]}, "A rotary embedding has more frequencies than a head has pairs."),
        ({"layers": [(0, 1)]}, "A layer has a rotary embedding that is not there."),
        ({"layers": []}, "A model needs layers."),
        ({"num_blocks": 0}, "A model needs a cache with blocks."),
        ({"block_size": 0}, "A model needs a cache with blocks."),
        ({"shape": {"num_kv_heads": 0}}, "The number of heads must be a multiple of that of kv heads."),
        (
            {"shape": {"num_heads": 3, "num_kv_heads": 2}},
            "The number of heads must be a multiple of that of kv heads.",
        ),
        ({"shape": {"head_dim": 24}}, "head_dim must be a multiple of 16."),
        ({"shape": {"head_dim": 0}}, "head_dim must be a multiple of 16."),
        (
            {"instruction_set": "sse9"},
            "This processor does not have the instruction set 'sse9', or rbee does not know it. Use .*",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_refused(changes, sentence):
    """The sentence names what does not fit; nothing is read that is not there."""
    if "shape" in changes:
        changes = {"shape": minimal_shape(**changes["shape"])}
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        minimal(**changes)


def test_weights_are_packed_piece_by_piece():
    """A model takes them only when all are; what is asked for beyond the end is nothing."""
    weights, pool = minimal_weights(), _kernels.ThreadPool(2)
    total = sum(matrix[3].nbytes for matrix in minimal_arguments()["matrices"].values())
    assert weights.source_bytes == total
    done = [weights.pack(1, pool) for _ in range(8)]
    assert done == sorted(set(done))
    assert done[-1] == total == weights.pack(1, pool)
    whole = minimal().execute(**arrays(Chunk(range(20), [1, 0], 0, 20)))
    cache: dict[str, Any] = {"kv_cache": "f32", "num_blocks": 2, "block_size": 16}
    others: dict[str, Any] = cache | {"exact": True, "instruction_set": "auto", "pool": pool}
    model = _kernels.Model(weights, **others)
    assert np.array_equal(model.execute(**arrays(Chunk(range(20), [1, 0], 0, 20))), whole)
    with pytest.raises(ValueError, match=r"^A model computes with packed weights; pack them all first\.$"):
        _kernels.Model(minimal_weights(), **others)


def test_environment_names_the_instruction_set(monkeypatch):
    """Of `auto`, and of nothing else; a name that this machine cannot have is refused with the choices."""
    monkeypatch.setenv("RBEE_INSTRUCTION_SET", "portable")
    assert minimal(instruction_set="auto").instruction_set == "portable"
    monkeypatch.setenv("RBEE_INSTRUCTION_SET", "sse9")
    assert minimal(instruction_set="portable").instruction_set == "portable"
    with pytest.raises(ValueError, match=r"'sse9', .* Use 'auto', .* or 'portable' in RBEE_INSTRUCTION_SET\.$"):
        minimal(instruction_set="auto")


def test_the_instruction_set_can_be_asked_for_without_a_model():
    """It is the one that a model would compute with, refused alike."""
    assert _kernels.choose_instruction_set("auto") == minimal().instruction_set
    assert _kernels.choose_instruction_set("portable") == "portable"
    with pytest.raises(ValueError, match="does not have the instruction set 'sse9'"):
        _kernels.choose_instruction_set("sse9")


def test_one_step_advances_the_progress_many_times():
    """Loading does too, and a model without a progress computes as well."""
    progress = Progress()
    model = minimal(progress=progress)
    loaded = progress.chunks
    assert loaded > 0
    one, none = np.zeros(1, np.int64), np.empty(0, np.int64)
    model.execute(one, one, one, np.array([0, 1]), one + 1, np.zeros((1, 1), np.int64), none)
    assert progress.chunks - loaded > 10


def test_an_unknown_activation_is_refused():
    """By the shape already."""
    with pytest.raises(ValueError, match=r"^activation must be 'silu', 'gelu_tanh' or 'relu2'\.$"):
        minimal_shape(activation="relu")


def test_a_residual_scale_and_norms_behind_the_halves_exclude_each_other():
    """No family has both, and the kernels have one of them."""
    norms = {f"layers.0.{name}": np.ones(16, np.float32) for name in ("post_attention_norm", "post_mlp_norm")}
    vectors = minimal_arguments()["vectors"] | norms
    minimal(vectors=vectors)
    with pytest.raises(ValueError, match=r"^A model with norms behind its halves cannot have a residual_scale\.$"):
        minimal(vectors=vectors, shape=minimal_shape(residual_scale=0.5))


def test_a_query_length_of_nothing_is_refused():
    """Positions are divided by it."""
    with pytest.raises(ValueError, match=r"^query_length must be positive\.$"):
        minimal_shape(query_length=0)


CONTEXT = "A sequence's context must hold its tokens, and fit its block table."
LAST = "A sequence's tokens must be the last ones of its context."
ENTRIES = "query_start and block_tables must have an entry per sequence, and query_start must end with the tokens."


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("token_ids", [0, 1, 2, 20, 4], "A token is not in the vocabulary."),
        ("token_ids", [0, 1, 2, -1, 4], "A token is not in the vocabulary."),
        ("slot_mapping", [0, 1, 2, 32, 4], "A slot is not in the cache."),
        ("slot_mapping", [0, 1, 2, -1, 4], "A slot is not in the cache."),
        ("slot_mapping", [0, 1, 2, 3], "positions and slot_mapping must be as long as token_ids."),
        ("positions", [3, 4, 5, 6], "positions and slot_mapping must be as long as token_ids."),
        ("positions", [3, 4, 5, 7, 0], LAST),
        ("positions", [2, 3, 4, 5, 0], LAST),
        ("positions", [-1, 0, 1, 2, 0], LAST),
        ("block_tables", [[2], [1]], "A block is not in the cache."),
        ("block_tables", [[0], [-1]], "A block is not in the cache."),
        ("block_tables", [[0], [1], [1]], ENTRIES),
        ("block_tables", [[], []], CONTEXT),
        ("context_lens", [17, 1], CONTEXT),
        ("context_lens", [3, 1], CONTEXT),
        ("context_lens", [7, 0], CONTEXT),
        ("context_lens", [7, -1], CONTEXT),
        ("context_lens", [6, 1], LAST),
        ("context_lens", [7], ENTRIES),
        ("context_lens", [], "A step needs a token."),
        ("query_start", [0, 4], ENTRIES),
        ("query_start", [1, 4, 5], ENTRIES),
        ("query_start", [0, 4, 4], ENTRIES),
        ("query_start", [0, 4, 6], ENTRIES),
        ("query_start", [0, 5, 5], f"{LAST}|{CONTEXT}|{ENTRIES}"),
        ("query_start", [0, 0, 5], f"{CONTEXT}|{ENTRIES}"),
        ("query_start", [0, 6, 5], f"{LAST}|{CONTEXT}|{ENTRIES}"),
        ("query_start", [0, -1, 5], f"{CONTEXT}|{ENTRIES}"),
        ("logits_rows", [5], "A row of logits is not in the step."),
        ("logits_rows", [0, -1], "A row of logits is not in the step."),
    ],
)
def test_a_step_that_leads_outside_is_refused(name, value, sentence):
    """Tokens 3 to 6 of one sequence and the first one of another, with an array spoilt: none of it is computed."""
    model = minimal()
    chunks = Chunk(range(7), [0], 3, 7), Chunk([5], [1], 0, 1)
    step = arrays(*chunks)
    shape = (-1, len(value[0])) if name == "block_tables" and value[0] else (2, 0) if name == "block_tables" else (-1,)
    before = model.execute(**step).copy()
    with pytest.raises(ValueError, match=f"^({sentence})$"):
        model.execute(**step | {name: np.array(value, np.int64).reshape(shape)})
    assert np.array_equal(model.execute(**step), before)


@pytest.mark.parametrize("name", arrays(Chunk([1], [0], 0, 1)))
@pytest.mark.parametrize("change", [np.int32, np.float64, "strides"])
def test_a_step_of_other_arrays_is_refused(name, change):
    """What the kernels would have to copy first is a mistake of whoever made it."""
    step = arrays(Chunk(range(20), [0, 1], 0, 20), Chunk([1], [1], 0, 1))
    array = step[name]
    changed = array.repeat(2, axis=-1)[..., ::2] if change == "strides" else array.astype(change)
    with pytest.raises(TypeError):
        minimal().execute(**step | {name: changed})


def test_a_cache_that_fits_no_address_space_is_a_memory_error():
    """Python's own exception, which the runner makes a sentence of."""
    with pytest.raises(MemoryError):
        minimal(num_blocks=1 << 44)


def test_logits_live_as_long_as_somebody_has_them():
    """The array keeps the model whose memory it is in: no other model gets that."""
    model = minimal()
    logits = model.execute(**arrays(Chunk([1], [0], 0, 1)))
    before = logits.copy()
    del model
    others = [minimal().execute(**arrays(Chunk([token], [0], 0, 1))) for token in range(2, 12)]
    assert np.array_equal(logits, before)
    assert all(np.isfinite(other).all() for other in others)


def test_profile_is_within_the_threads_time():
    """No thread works longer than the steps take, and each part of a step has taken some time."""
    pool = _kernels.ThreadPool(2)
    model = minimal(pool=pool)
    assert set(model.profile().values()) == {0}
    for _ in range(20):
        model.execute(**arrays(Chunk(range(20), [1, 0], 0, 20)))
    profile = model.profile()
    steps = profile.pop("steps")
    assert set(profile) == {"linear", "head", "attention", "other"}
    assert all(seconds > 0 for seconds in profile.values())
    assert sum(profile.values()) <= steps * pool.threads
