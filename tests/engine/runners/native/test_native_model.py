"""The native model step by step: its logits against torch's, and what they must not depend on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from rbee.engine.runners.native.weights import FORMAT_NAMES
from tests.engine.runners.native.native_parts import (
    INSTRUCTION_SETS,
    ByteCache,
    Chunk,
    HalfCache,
    execute,
    round_activations,
    take_weights,
)
from tests.engine.runners.native.weights_parts import expected as tensors_of
from tests.engine.runners.native.weights_parts import load, write_gguf
from tests.engine.runners.tiny_models import (
    ALTERNATING,
    NATIVE_ARCHITECTURES,
    SIXTEEN,
    WINDOW,
    Architecture,
    load_native,
    make_model,
)

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
    "up": Type.Q3_K,
    "down": Type.Q2_K,
    "embedding": Type.Q5_0,
    "head": Type.Q5_1,
}
TABLE_GGUF_KINDS = {
    "query": Type.IQ4_NL,
    "key": Type.IQ4_XS,
    "value": Type.MXFP4,
    "output": Type.IQ2_XXS,
    "gate": Type.IQ2_XS,
    "up": Type.IQ4_XS,
    "down": Type.MXFP4,
    "embedding": Type.Q6_K,
    "head": Type.IQ4_NL,
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
    "gguf, tables": (lambda folder: make_gguf(folder, TABLE_GGUF_KINDS), "none"),
    "gguf, mixed with floats": (lambda folder: make_gguf(folder, MIXED_GGUF_KINDS), "none"),
}


class Case(NamedTuple):
    """A model, prompts [n, length], and what torch makes of them with the numbers that the packed weights stand for.

    Attributes:
        plain: torch's logits [n, length, vocab].
        rounded: by what the cache holds, those with activations in 8 bits, where the kernels have them.
    """

    folder: Path
    quantize: str
    prompts: torch.Tensor
    plain: NDArray[np.float32]
    rounded: dict[str, NDArray[np.float32]]


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
        rounded = {
            "f16": model(prompts, past_key_values=HalfCache()).logits.numpy(),
            "q8": model(prompts, past_key_values=ByteCache()).logits.numpy(),
        }
    return Case(folder, quantize, prompts, plain, rounded)


def test_models_have_matrices_in_every_format(tmp_path, monkeypatch):
    """Of weights.h: what is said below of the models holds for all that the kernels know."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    formats = set()
    for name in ("floats", "gguf", "gguf, tables", "gguf, mixed with floats"):
        MODELS[name][0](tmp_path / name)
        formats |= {matrix.format for matrix in load(tmp_path / name).matrices.values()}
    assert formats == set(range(len(FORMAT_NAMES)))


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
@pytest.mark.parametrize("kv_cache", ["f16", "q8"])
def test_default_mode_rounds_activations_and_cache_and_nothing_else(case, kv_cache, instruction_set):
    """The logits are those of torch with activations in 8 bits, in groups of 32, and a cache of binary16 or bytes.

    But where a number lies so close to the middle between two steps that another order of additions moves it to the
    other one: those tokens may be as far off as rounding moves logits altogether.
    """
    logits = logits_of(case, exact=False, kv_cache=kv_cache, instruction_set=instruction_set)
    rounded = case.rounded[kv_cache]
    off = np.abs(logits - rounded).max(-1)
    assert np.mean(off < ROUNDING * size_of(rounded)) > 0.8
    assert off.max() < np.abs(case.plain - rounded).max()
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
MODES: dict[str, dict[str, Any]] = {
    "exact": {"exact": True},
    "int8": {"exact": False, "quantize": "q4"},
    "int8, cache in 8 bits": {"exact": False, "quantize": "q4", "kv_cache": "q8"},
}


@pytest.fixture(scope="module", params=LONG_MODELS)
def long_model(request, tmp_path_factory):
    """The folder of a model for long prompts."""
    folder = tmp_path_factory.mktemp("long") / "model"
    make_model(folder, LONG_MODELS[request.param])
    return folder


def draw(count: int, seed: int) -> list[int]:
    """Random tokens."""
    tokens: list[int] = np.random.default_rng(seed).integers(1, SIXTEEN["vocab_size"], count).tolist()
    return tokens


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
