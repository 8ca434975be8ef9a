"""The native model step by step: its logits against torch's, what they must not depend on, and what it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from native_parts import (
    INSTRUCTION_SETS,
    Chunk,
    HalfCache,
    arrays,
    execute,
    minimal,
    minimal_arguments,
    minimal_shape,
    packed,
    round_activations,
    take_weights,
)
from tiny_models import ALTERNATING, NATIVE_ARCHITECTURES, SIXTEEN, WINDOW, Architecture, load_native, make_model
from weights_parts import expected as tensors_of
from weights_parts import load, write_gguf

from rbee.engine import _kernels  # noqa: TID251 - what is under test

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

# Of the logits' size. Adding floats in another order changes them by 1e-6 of it, or 1e-5 where the softmax is steep.
ROUNDING = 1e-4


def size_of(logits: NDArray[np.float32]) -> float:
    """The root of their mean square."""
    return float(np.sqrt(np.mean(logits * logits)))


# ---- against torch ---------------------------------------------------------------------------------------------------

ALL_QUANTIZED = Architecture(lambda: transformers.LlamaConfig(**{**SIXTEEN, "intermediate_size": 96}), scale=0.3)
WIDE = {**SIXTEEN, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}  # K types come in 256 columns
GGUF_KINDS = {
    "query": Type.Q4_K,
    "key": Type.Q5_K,
    "value": Type.Q6_K,
    "output": Type.Q8_0,
    "gate": Type.Q4_0,
    "up": Type.Q5_K,
    "down": Type.Q6_K,
    "embedding": Type.Q8_0,
    "head": Type.Q6_K,
}
MIXED_GGUF_KINDS = {
    "query": Type.Q4_1,
    "key": Type.F16,
    "value": Type.BF16,
    "output": Type.Q4_K,
    "gate": Type.F16,
    "up": Type.Q4_1,
    "down": Type.Q5_K,
    "embedding": Type.Q4_K,
    "head": Type.BF16,
}


def make_gguf(folder: Path, kinds: dict[str, Type]) -> transformers.PreTrainedModel:
    """A Llama with blocks of these types, whose norms keep what random blocks yield from blinding the attention."""
    model = make_model(folder, Architecture(lambda: transformers.LlamaConfig(**WIDE)))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.mul_(0.02)
            layer.post_attention_layernorm.weight.mul_(0.02)
    write_gguf(folder / "some.gguf", tensors_of(model), kinds, heads={"query": 4, "key": 2})
    (folder / "rbee.json").write_text(json.dumps({"gguf": "some.gguf", "files": {}}))
    return model


MODELS: dict[str, tuple[Callable[[Path], transformers.PreTrainedModel], str]] = {
    "floats": (lambda folder: make_model(folder, NATIVE_ARCHITECTURES["llama"]), "none"),
    "q4, down stays float": (lambda folder: make_model(folder, NATIVE_ARCHITECTURES["llama"]), "q4"),
    "q8, down stays float": (lambda folder: make_model(folder, NATIVE_ARCHITECTURES["llama"]), "q8"),
    "q4": (lambda folder: make_model(folder, ALL_QUANTIZED), "q4"),
    "q8": (lambda folder: make_model(folder, ALL_QUANTIZED), "q8"),
    "q4, tied and biased": (lambda folder: make_model(folder, NATIVE_ARCHITECTURES["llama, tied and biased"]), "q4"),
    "q4, gemma3": (lambda folder: make_model(folder, NATIVE_ARCHITECTURES["gemma3"]), "q4"),
    "q8, qwen3": (lambda folder: make_model(folder, NATIVE_ARCHITECTURES["qwen3"]), "q8"),
    "gguf": (lambda folder: make_gguf(folder, GGUF_KINDS), "none"),
    "gguf, mixed with floats": (lambda folder: make_gguf(folder, MIXED_GGUF_KINDS), "none"),
}


class Case(NamedTuple):
    """A model, prompts [n, length], and what torch makes of them with the numbers that the packed weights stand for.

    Attributes:
        plain: torch's logits [n, length, vocab].
        rounded: those with activations in 8 bits and a cache of binary16, where the kernels have them.
    """

    folder: Path
    quantize: str
    prompts: torch.Tensor
    plain: NDArray[np.float32]
    rounded: NDArray[np.float32]


@pytest.fixture(scope="module", params=MODELS)
def case(request, tmp_path_factory):
    """Each of the models, with 30 prompts of 3 tokens."""
    make, quantize = MODELS[request.param]
    folder = tmp_path_factory.mktemp("models") / "model"
    model = make(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBEE_CACHE", str(folder.parent / "cache"))
        weights = load(folder, quantize=quantize)
    take_weights(model, weights)
    prompts = torch.randint(1, SIXTEEN["vocab_size"], (30, 3), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        plain = model(prompts).logits.numpy()
        round_activations(model, weights)
        rounded = model(prompts, past_key_values=HalfCache()).logits.numpy()
    return Case(folder, quantize, prompts, plain, rounded)


def test_models_have_matrices_in_every_format(tmp_path, monkeypatch):
    """Of weights.h: what is said below of the models holds for all that the kernels know."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    formats = set()
    for name in ("floats", "gguf", "gguf, mixed with floats"):
        MODELS[name][0](tmp_path / name)
        formats |= {matrix.format for matrix in load(tmp_path / name).matrices.values()}
    assert formats == set(range(8))


def logits_of(case: Case, **options: Any) -> NDArray[np.float32]:
    """The native runner's, with all prompts in one step."""
    runner = load_native(case.folder, quantize=case.quantize, **options)
    chunks = [Chunk(prompt, [block], 0, len(prompt)) for block, prompt in enumerate(case.prompts.tolist())]
    return np.stack(execute(runner, *chunks))


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_exact_mode_computes_what_torch_does(case, instruction_set):
    """With the numbers that the packed weights stand for, in each of their formats."""
    logits = logits_of(case, exact=True, instruction_set=instruction_set)
    assert np.abs(logits - case.plain).max() < ROUNDING * size_of(case.plain)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_default_mode_rounds_activations_and_cache_and_nothing_else(case, instruction_set):
    """The logits are those of torch with activations in 8 bits, in groups of 32, and a cache of binary16.

    But where a number lies so close to the middle between two steps that another order of additions moves it to the
    other one: those tokens may be as far off as rounding moves logits altogether.
    """
    logits = logits_of(case, exact=False, instruction_set=instruction_set)
    off = np.abs(logits - case.rounded).max(-1)
    assert np.mean(off < ROUNDING * size_of(case.rounded)) > 0.8
    assert off.max() < np.abs(case.plain - case.rounded).max()
    moved = np.abs(logits - case.plain).max(-1) / size_of(case.plain)
    assert 1e-4 < np.median(moved) < 0.25


# ---- what logits must not depend on ----------------------------------------------------------------------------------

LONG = 600  # tokens: more than the 512 from which on threads share a context
LENGTHS = {"max_position_embeddings": 2048}
LONG_MODELS = {
    "qwen2, upper layers with windows": Architecture(
        lambda: transformers.Qwen2Config(
            **{**SIXTEEN, **LENGTHS, "intermediate_size": 96},
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=2,
        ),
        scale=0.3,
    ),
    "gemma3": Architecture(
        lambda: transformers.Gemma3TextConfig(
            **{**SIXTEEN, **LENGTHS},
            head_dim=16,
            sliding_window=530,
            query_pre_attn_scalar=3,
            layer_types=ALTERNATING,
        ),
        scale=0.3,
    ),
}
MODES = {"exact": {"exact": True}, "int8": {"exact": False, "quantize": "q4"}}


@pytest.fixture(scope="module", params=LONG_MODELS)
def long_model(request, tmp_path_factory):
    """The folder of a model for long prompts."""
    folder = tmp_path_factory.mktemp("long") / "model"
    make_model(folder, LONG_MODELS[request.param])
    return folder


def draw(count: int, seed: int) -> list[int]:
    """Random tokens."""
    return np.random.default_rng(seed).integers(1, SIXTEEN["vocab_size"], count).tolist()


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_a_long_context_is_attended_to_as_torch_does(long_model, instruction_set):
    """Also where windows reach back beyond the parts that a context is divided into, or begin within one."""
    tokens = draw(LONG, 1)
    reference = transformers.AutoModelForCausalLM.from_pretrained(long_model)
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    runner = load_native(long_model, instruction_set=instruction_set)
    (logits,) = execute(runner, Chunk(tokens, range(40), 0, LONG))
    assert np.abs(logits - expected).max() < ROUNDING * size_of(expected)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("mode", MODES)
def test_a_row_is_the_same_whatever_is_computed_with_it(long_model, mode, instruction_set):
    """To the last bit: alone or beside others, whole, in chunks or token by token, and with any number of threads."""
    blocks = np.random.default_rng(0).permutation(120).tolist()
    tokens, middle, short = draw(LONG, 1), draw(LONG, 2), draw(50, 3)
    own, of_middle, of_short = blocks[:40], blocks[40:80], blocks[80:90]

    def runner(threads: int):
        return load_native(
            long_model, threads=threads, instruction_set=instruction_set, **{"kv_cache_mib": 8, **MODES[mode]}
        )

    alone = runner(1)
    (expected,) = execute(alone, Chunk(tokens, own, 0, LONG))
    (expected_middle,) = execute(alone, Chunk(middle, of_middle, 0, LONG))
    (expected_short,) = execute(alone, Chunk(short, of_short, 0, 50))
    for threads in (1, 2, 3):
        other = runner(threads)
        (whole,) = execute(other, Chunk(tokens, own, 0, LONG))
        assert np.array_equal(whole, expected), f"whole, {threads} threads"

        other = runner(threads)
        for start in range(0, 500, 50):  # beside one that decodes, and a shorter chunk of a third
            first, third, second = execute(
                other,
                Chunk(tokens, own, start, start + 50),
                Chunk(short, of_short, start // 10, start // 10 + 5),
                Chunk(middle, of_middle, start // 50, start // 50 + 1),
            )
            assert np.array_equal(first, expected[start : start + 50]), f"chunk at {start}, {threads} threads"
            assert np.array_equal(third, expected_short[start // 10 : start // 10 + 5])
            assert np.array_equal(second, expected_middle[start // 50 : start // 50 + 1])
        (rest,) = execute(other, Chunk(middle, of_middle, 10, LONG))
        assert np.array_equal(rest, expected_middle[10:])
        (rest,) = execute(other, Chunk(tokens, own, 500, 510))
        assert np.array_equal(rest, expected[500:510])
        for position in range(510, LONG):  # alone, or with another one that is as long
            beside = [Chunk(middle, of_middle, position - 5, position - 4)] if position % 3 == 0 else []
            rows = execute(other, Chunk(tokens, own, position, position + 1), *beside)
            assert np.array_equal(rows[0], expected[position : position + 1]), f"token {position}, {threads} threads"
            if beside:
                assert np.array_equal(rows[1], expected_middle[position - 5 : position - 4])


# ---- what it refuses -------------------------------------------------------------------------------------------------


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
            other_matrix("layers.0.key", lambda _: packed(np.ones((32, 16), np.float32))),
            "The matrix 'layers.0.key' is 32 x 16, but the model needs 16 x 16.",
        ),
        (
            other_matrix("embedding", lambda _: packed(np.ones((19, 16), np.float32))),
            "The matrix 'embedding' is 19 x 16, but the model needs 20 x 16.",
        ),
        (
            {"matrices": minimal_arguments()["matrices"] | {"head": packed(np.ones((20, 15), np.float32))}},
            "The matrix 'head' is 20 x 15, but the model needs 20 x 16.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (*matrix[:3], matrix[3][:-1])),
            "The matrix 'layers.0.gate' has 1023 bytes, but its format needs 1024.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (1, *matrix[1:])),
            "The matrix 'layers.0.gate' has 1024 bytes, but its format needs 512.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (8, *matrix[1:])),
            "The matrix 'layers.0.gate' has the unknown format 8.",
        ),
        (
            other_matrix("layers.0.gate", lambda matrix: (3, *matrix[1:])),
            "The matrix 'layers.0.gate' is quantized, but its columns are no multiple of 32.",
        ),
        (
            other_vector("layers.0.attention_norm", 15),
            "The vector 'layers.0.attention_norm' has 15 numbers, but the model needs 16.",
        ),
        (other_vector("layers.0.query_bias", 31), "The vector 'layers.0.query_bias' has 31 numbers, but .* needs 32."),
        (other_vector("layers.0.up_bias", 9), "The vector 'layers.0.up_bias' has 9 numbers, but the model needs 8."),
        (other_vector("layers.0.key_norm", 8), "The vector 'layers.0.key_norm' has 8 numbers, but .* needs 16."),
        (other_vector("layers.0.post_mlp_norm", 16), "All layers must have both norms behind their halves, or none."),
        ({"rotaries": [([1.0] * 7, 1.0)]}, "A rotary embedding needs a frequency per pair of a head."),
        ({"layers": [(0, 1)]}, "A layer has a rotary embedding that is not there."),
        ({"layers": []}, "A model needs layers, and a cache with blocks."),
        ({"num_blocks": 0}, "A model needs layers, and a cache with blocks."),
        ({"block_size": 0}, "A model needs layers, and a cache with blocks."),
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


def test_an_unknown_activation_is_refused():
    """By the shape already."""
    with pytest.raises(ValueError, match=r"^activation must be 'silu' or 'gelu_tanh'\.$"):
        minimal_shape(activation="relu")


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
        ("query_start", [0, 5, 5], f"{LAST}|{CONTEXT}"),
        ("query_start", [0, 0, 5], CONTEXT),
        ("query_start", [0, 6, 5], f"{LAST}|{CONTEXT}"),
        ("query_start", [0, -1, 5], CONTEXT),
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
    logits = minimal().execute(**arrays(Chunk([1], [0], 0, 1)))
    before = logits.copy()
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
