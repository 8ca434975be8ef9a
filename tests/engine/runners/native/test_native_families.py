"""Families of models natively: behind the length of training, in 8 bits, and as text parts of larger models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from rbee.engine.runners.native.spec import read_spec
from tests.engine.engine_parts import InProcessEngine
from tests.engine.runners.native.native_parts import INSTRUCTION_SETS, Chunk, execute
from tests.engine.runners.tiny_models import (
    ALTERNATING,
    LLAMA3_ROPE,
    NATIVE_ARCHITECTURES,
    SIXTEEN,
    WINDOW,
    YARN_ROPE,
    Architecture,
    load,
    load_native,
    make_model,
    rope,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROUNDING = 1e-4  # of the logits' size: what adding floats in another order makes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for packed weights."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))


def assert_logits(folder: Path, model: transformers.PreTrainedModel, length: int, **options: Any) -> None:
    """The native runner's logits of a random prompt are the model's."""
    tokens = torch.randint(1, 200, (1, length), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = model(input_ids=tokens).logits[0].numpy()
    runner = load_native(folder, **options)
    (logits,) = execute(runner, Chunk(tokens[0].tolist(), range(-(-length // 16)), 0, length))
    assert np.abs(logits - expected).max() < ROUNDING * np.sqrt(np.mean(expected**2))


# ---- far positions ---------------------------------------------------------------------------------------------------

SCALED: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama3": lambda: transformers.LlamaConfig(**SIXTEEN, **LLAMA3_ROPE),
    "parts of heads": lambda: transformers.Phi3Config(**SIXTEEN, **rope("default", partial_rotary_factor=0.5)),
    "yarn": lambda: transformers.Qwen2Config(**SIXTEEN, **YARN_ROPE),
    "yarn with weights": lambda: transformers.Qwen3Config(
        **SIXTEEN,
        head_dim=16,
        **rope("yarn", factor=8.0, original_max_position_embeddings=32, mscale=1.4, mscale_all_dim=0.7),
    ),
    "queries that grow": NATIVE_ARCHITECTURES["ministral3"].config,
    "linear in layers without windows": lambda: transformers.Gemma3TextConfig(
        **SIXTEEN,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "longrope that is the same for short and long": lambda: transformers.LlamaConfig(
        **SIXTEEN,
        **rope(
            "longrope",
            short_factor=[1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0],
            long_factor=[1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0],
            attention_factor=1.0,
            original_max_position_embeddings=64,
        ),
    ),
}


@pytest.mark.parametrize("name", SCALED)
def test_positions_behind_the_length_of_training(name, tmp_path):
    """Scaled ropes and grown queries are transformers' up to the model's last position."""
    model = make_model(tmp_path / "model", Architecture(SCALED[name], scale=0.3))
    assert_logits(tmp_path / "model", model, 256)


def test_a_longrope_with_one_list_of_factors_divides_the_frequencies_and_limits_nothing():
    """So the config of a GGUF has Llama 3's rope, whose factors are a tensor there."""
    scaled = json.loads(transformers.LlamaConfig(**SIXTEEN, **LLAMA3_ROPE).to_json_string())
    base = np.float32(10000.0) ** (np.arange(0, 16, 2, dtype=np.float32) / np.float32(16))
    factors = (1 / (base * read_spec(scaled).ropes[0].inverse_frequencies)).tolist()
    parameters = rope("longrope", short_factor=factors, long_factor=factors, attention_factor=1.0)
    for original in (SIXTEEN["max_position_embeddings"], 32):
        parameters["rope_parameters"]["original_max_position_embeddings"] = original
        spec = read_spec({**scaled, **parameters})
        assert spec.ropes[0].attention_factor == 1.0
        np.testing.assert_array_max_ulp(
            spec.ropes[0].inverse_frequencies, np.float32(1) / (np.array(factors, np.float32) * base), maxulp=1
        )
        assert spec.position_limit == SIXTEEN["max_position_embeddings"]


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ["arcee", "granite", "phi3, longrope of parts of heads", "smollm3"])
def test_every_instruction_set_computes_a_family(name, instruction_set, tmp_path):
    """No gates, factors, parts of heads and unturned layers, with every instruction set of this machine."""
    architecture = NATIVE_ARCHITECTURES[name]
    model = make_model(tmp_path / "model", architecture)
    options = {"instruction_set": instruction_set, "max_model_len": architecture.max_model_len}
    assert_logits(tmp_path / "model", model, 40, **options)


@pytest.mark.parametrize("name", ["arcee", "granite", "ministral3", "phi3, longrope of parts of heads", "smollm3"])
def test_rows_in_8_bits_do_not_depend_on_others(name, tmp_path):
    """To the last bit: in one chunk with one thread, or in small ones beside another sequence with three."""
    make_model(tmp_path / "model", NATIVE_ARCHITECTURES[name])
    one, other = (np.random.default_rng(seed).integers(1, 200, 60).tolist() for seed in (1, 2))
    options: dict[str, Any] = {"exact": False, "quantize": "q4"}
    (expected,) = execute(load_native(tmp_path / "model", threads=1, **options), Chunk(one, range(4), 0, 60))
    runner = load_native(tmp_path / "model", threads=3, **options)
    for start in range(0, 60, 5):
        rows, _ = execute(
            runner, Chunk(one, range(4), start, start + 5), Chunk(other, range(4, 8), start // 5, start // 5 + 1)
        )
        assert np.array_equal(rows, expected[start : start + 5])


# ---- text parts of larger models -------------------------------------------------------------------------------------

TINY_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 16,
}
QWEN_IMAGES: dict[str, Any] = {
    "image_token_id": 210,
    "video_token_id": 209,
    "vision_start_token_id": 208,
    "vision_end_token_id": 207,
}
MINISTRAL3_ROPE = rope("yarn", factor=4.0, original_max_position_embeddings=16, llama_4_scaling_beta=0.1)
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
WRAPPED: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "gemma3": lambda: transformers.Gemma3Config(
        text_config={**SIXTEEN, "head_dim": 16, "sliding_window": WINDOW, "layer_types": ALTERNATING},
        vision_config={"model_type": "siglip_vision_model", **TINY_VISION},
        mm_tokens_per_image=4,
        image_token_index=210,
        **UNTIED,
    ),
    "mistral3, tied": lambda: transformers.Mistral3Config(
        text_config={**SIXTEEN, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
        vision_config={"model_type": "pixtral", "head_dim": 16, **TINY_VISION},
        image_token_index=210,
    ),
    "mistral3 with a ministral3": lambda: transformers.Mistral3Config(
        text_config={**SIXTEEN, "model_type": "ministral3", "head_dim": 16, **MINISTRAL3_ROPE},
        vision_config={"model_type": "pixtral", "head_dim": 16, **TINY_VISION},
        image_token_index=210,
        **UNTIED,
    ),
    "qwen2.5-vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config={**SIXTEEN, **rope("default", mrope_section=[2, 3, 3])},
        vision_config={**QWEN_VISION, "fullatt_block_indexes": [0]},
        **QWEN_IMAGES,
        **UNTIED,
    ),
    "qwen3-vl": lambda: transformers.Qwen3VLConfig(
        text_config={**SIXTEEN, "head_dim": 16, **rope("default", mrope_section=[4, 2, 2])},
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0]},
        **QWEN_IMAGES,
        **UNTIED,
    ),
}


def make_wrapped(folder: Path, name: str) -> transformers.PreTrainedModel:
    """A random model for images and text."""
    return make_model(folder, Architecture(WRAPPED[name], scale=0.3), kind=transformers.AutoModelForImageTextToText)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_text_part_of_a_larger_model_is_served(name, tmp_path):
    """Its logits are the whole model's, and what is for images stays in the file."""
    assert_logits(tmp_path / "model", make_wrapped(tmp_path / "model", name), 40)


def test_the_names_that_transformers_has_in_memory_are_known_too(tmp_path):
    """The text part below the whole model, and the head beside it."""
    model = make_wrapped(tmp_path / "model", "gemma3")
    parts = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}

    def renamed(name: str) -> str:
        old = next((part for part in parts if name.startswith(part)), None)
        return f"model.{name}" if old is None else parts[old] + name.removeprefix(old)

    path = tmp_path / "model" / "model.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path)
    assert_logits(tmp_path / "model", model, 10)


def test_the_torch_runner_serves_the_same_wrapper(tmp_path):
    """Gemma 3 for images and text: the torch runner's greedy tokens are the native one's."""
    make_wrapped(tmp_path / "model", "gemma3")
    prompt = np.random.default_rng(1).integers(1, 200, 30).tolist()
    answers = []
    for runner in (load(tmp_path / "model"), load_native(tmp_path / "model")):
        with InProcessEngine(runner) as engine:
            request = engine.submit(prompt, max_tokens=12)
            engine.run()
            answers.append(request.tokens)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 4


def test_a_qwen_vl_config_without_a_text_config_is_its_own(tmp_path):
    """The first Qwen 2 VL files have all keys in one object."""
    model = make_wrapped(tmp_path / "model", "qwen2.5-vl")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    text = config.pop("text_config")
    section = text.pop("rope_parameters")["mrope_section"]
    older = {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": section}}
    path.write_text(json.dumps({**text, **config, **older, "model_type": "qwen2_5_vl"}))
    assert_logits(tmp_path / "model", model, 10)
