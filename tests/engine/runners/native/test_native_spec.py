"""What is read from a config.json, beside what transformers makes of the same file."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rbee.engine.runners.native.spec import LayerSpec, read_spec
from rbee.engine.runners.torch.model import TorchModel
from tests.engine.runners.native.spec_parts import LONGROPE, SMALL

CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma3_text": transformers.Gemma3TextConfig,
    "ministral": transformers.MinistralConfig,
    "ministral3": transformers.Ministral3Config,
    "gemma": transformers.GemmaConfig,
    "granite": transformers.GraniteConfig,
    "ernie4_5": transformers.Ernie4_5Config,
    "seed_oss": transformers.SeedOssConfig,
    "helium": transformers.HeliumConfig,
    "smollm3": transformers.SmolLM3Config,
    "arcee": transformers.ArceeConfig,
    "phi3": transformers.Phi3Config,
}
WINDOW_OF_ALL = ("mistral", "ministral3", "phi3")  # whose layers have the config's window
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 123456.0},
    "linear": {"rope_type": "linear", "factor": 3.3},
    "dynamic": {"rope_type": "dynamic", "factor": 3.3},
    "dynamic, shorter": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 100},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, own length": {"rope_type": "yarn", "factor": 4.0},
    "yarn, no factor": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64, "beta_fast": 8},
    "yarn, not truncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": False,
        "mscale": 1.2,
        "mscale_all_dim": 0.7,
        "beta_slow": 2,
    },
    "yarn, attention factor": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 0.9},
    "yarn, no ramp": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 128},
    "longrope": {**LONGROPE, "original_max_position_embeddings": 128},
    "longrope, factor": {**LONGROPE, "original_max_position_embeddings": 64, "factor": 5.0},
    "longrope, attention factor": {**LONGROPE, "original_max_position_embeddings": 64, "attention_factor": 1.25},
}


SHORT = 8  # tokens, which is within the original length of all these


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Some of these configs are odd, and transformers says so."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)


def model_and_spec(folder, values):
    """The model that transformers makes of a config.json with `values`, and what we read from it for short texts."""
    (folder / "config.json").write_text(json.dumps(values))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    return model, read_spec(json.loads((folder / "config.json").read_text()), max_model_len=SHORT)


def assert_same(model, spec):
    """Every number of the spec is what the model computes with."""
    config, layers = model.config, model.model.layers
    attention, mlp, rotary = layers[0].self_attn, layers[0].mlp, model.model.rotary_emb
    assert model.model.embed_tokens.weight.shape == (spec.vocab_size, spec.hidden_size)
    assert mlp.down_proj.weight.shape == (spec.hidden_size, spec.intermediate_size)
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    if spec.model_type == "phi3":
        assert attention.qkv_proj.weight.shape[0] == queries + 2 * keys
    else:
        assert (attention.q_proj.weight.shape[0], attention.k_proj.weight.shape[0]) == (queries, keys)
    assert attention.head_dim == spec.head_dim
    assert attention.scaling == pytest.approx(spec.attention_scale, rel=1e-15)
    assert config.rms_norm_eps == spec.rms_norm_eps
    embed_scale = getattr(model.model.embed_tokens, "embed_scale", torch.tensor(1.0)).item()
    assert embed_scale * getattr(config, "embedding_multiplier", 1.0) == spec.embedding_scale
    assert getattr(config, "residual_multiplier", 1.0) == spec.residual_scale
    assert getattr(config, "logits_scaling", 1.0) == 1 / spec.logit_scale
    gate = torch.linspace(-3, 3, 50)
    other = {
        "silu": torch.nn.functional.silu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu2": lambda x: torch.nn.functional.relu(x).square(),
    }
    activation = mlp.activation_fn if spec.model_type == "phi3" else mlp.act_fn
    assert torch.equal(activation(gate), other[spec.activation](gate))

    names = {name for name, _ in model.named_parameters()}
    at = "model.layers.0."
    assert (at + "self_attn.q_norm.weight" in names) == spec.has_qk_norm
    assert (at + "post_feedforward_layernorm.weight" in names) == spec.has_post_norms
    assert (at + "self_attn.q_proj.bias" in names) == (at + "self_attn.v_proj.bias" in names) == spec.has_qkv_bias
    assert (at + "self_attn.o_proj.bias" in names) == spec.has_output_bias
    assert (at + "mlp.up_proj.bias" in names) == (at + "mlp.down_proj.bias" in names) == spec.has_mlp_bias
    assert any(at + f"mlp.{name}.weight" in names for name in ("gate_proj", "gate_up_proj")) == spec.has_gate
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == spec.tied_embeddings
    with torch.no_grad():
        layers[0].input_layernorm.weight.fill_(0.25)
    plain = layers[0].input_layernorm(torch.ones(1, spec.hidden_size))
    assert plain.mean().item() == pytest.approx(1.25 if spec.unit_offset_norms else 0.25, rel=1e-5)

    assert len(layers) == len(spec.layers)
    for theirs, ours in zip(layers, spec.layers, strict=True):
        looks_back = config if spec.model_type in WINDOW_OF_ALL else theirs.self_attn
        assert (getattr(looks_back, "sliding_window", None) or 0) == ours.window
        if not getattr(theirs.self_attn, "use_rope", True):
            assert len(spec.ropes[ours.rope].inverse_frequencies) == 0
            continue
        prefix = f"{theirs.self_attn.layer_type}_" if isinstance(rotary.rope_type, dict) else ""
        assert_same_rope(
            spec.ropes[ours.rope],
            getattr(rotary, f"{prefix}inv_freq").numpy(),
            getattr(rotary, f"{prefix}attention_scaling"),
        )
    assert spec.position_limit == TorchModel(model).position_limit


def assert_same_rope(rope, frequencies, attention_factor):
    """Frequencies to the last bit but one: powers are rounded as the machine's vector library does."""
    assert rope.inverse_frequencies.dtype == np.float32
    assert rope.inverse_frequencies.shape == frequencies.shape
    np.testing.assert_array_max_ulp(rope.inverse_frequencies, frequencies, maxulp=1)
    assert rope.attention_factor == attention_factor


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"])
def test_every_rope_of_every_kind_is_that_of_transformers(kind, rope, tmp_path):
    """Frequencies, attention factor and position limit, with the parameters where transformers 5 writes them."""
    parameters: dict[str, Any] = {"rope_theta": 10000.0, **ROPES[rope]}
    if kind == "gemma3_text":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", "rope_theta": 777.0}}
    config = CONFIGS[kind](**SMALL, rope_parameters=parameters)
    assert_same(*model_and_spec(tmp_path, json.loads(config.to_json_string())))


@pytest.mark.parametrize("rope", [name for name in ROPES if name.startswith("longrope")])
def test_sequences_beyond_the_original_length_get_factors_of_their_own(rope):
    """All of them, as soon as one may be that long: those that transformers takes for one that is."""
    config = transformers.LlamaConfig(**SMALL, rope_parameters={"rope_theta": 10000.0, **ROPES[rope]})
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    limit, original = SMALL["max_position_embeddings"], ROPES[rope]["original_max_position_embeddings"]
    for max_model_len, position in ((original, original - 1), (original + 1, original), (0, limit - 1)):
        theirs(torch.zeros(1, 1, 1), torch.tensor([[position]]))
        spec = read_spec(json.loads(config.to_json_string()), max_model_len=max_model_len)
        assert_same_rope(spec.ropes[0], theirs.inv_freq.numpy(), theirs.attention_scaling)
        assert spec.position_limit == limit


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gemma3_text"])
def test_a_share_of_a_head_is_turned_where_transformers_turns_one(kind, tmp_path):
    """Most families ignore the key if their rope has no scaling."""
    config = CONFIGS[kind](**SMALL, rope_parameters={**ROPES["default"], "partial_rotary_factor": 0.5})
    model, spec = model_and_spec(tmp_path, json.loads(config.to_json_string()))
    assert_same(model, spec)
    assert (2 * len(spec.ropes[0].inverse_frequencies) < SMALL["head_dim"]) == (kind == "phi3")


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("theta", [10000.0, 100000, 500000.0, 1000000.0, 8000000.0])
def test_frequencies_of_every_size_are_those_of_transformers(head_dim, theta):
    """All head sizes and bases that models have."""
    config = transformers.LlamaConfig(
        **{**SMALL, "head_dim": head_dim}, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    (ours,) = read_spec(json.loads(config.to_json_string())).ropes
    bits = ours.inverse_frequencies.view(np.int32) - theirs.inv_freq.numpy().view(np.int32)
    assert np.abs(bits).max() <= 2
    assert np.count_nonzero(bits) <= head_dim // 16


TYPES = ["sliding_attention", *["full_attention"] * 5, "sliding_attention"]
OLDER: dict[str, dict[str, Any]] = {
    "llama 2": {"model_type": "llama", "rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama 3.1": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3, "rope_theta": 400000.0, "original_max_position_embeddings": 64},
    },
    "llama, length beside the rope": {
        "model_type": "llama",
        "head_dim": 32,
        "original_max_position_embeddings": 128,
        "rope_scaling": LONGROPE,
    },
    "llama, nothing said": {"model_type": "llama", "head_dim": None, "num_key_value_heads": None},
    "llama, biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama, keys of others": {"model_type": "llama", "sliding_window": 9, "use_sliding_window": True},
    "llama, gelu": {"model_type": "llama", "hidden_act": "gelu_pytorch_tanh"},
    "mistral 0.1": {"model_type": "mistral", "sliding_window": 24, "rope_theta": 10000.0},
    "mistral, no window": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1000000.0},
    "mistral, keys of others": {"model_type": "mistral", "attention_bias": True, "mlp_bias": True},
    "qwen2.5": {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000.0, "sliding_window": 24},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 3,
        "attention_bias": False,
    },
    "qwen2, yarn": {
        "model_type": "qwen2",
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 48, "attention_bias": True},
    "qwen3, types": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 24,
        "layer_types": TYPES,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 24,
        "rope_theta": 1000000,
        "rope_local_base_freq": 5000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "query_pre_attn_scalar": 60,
    },
    "gemma3, pattern": {"model_type": "gemma3_text", "sliding_window_pattern": 3, "attention_bias": True},
    "gemma3, all full": {"model_type": "gemma3_text", "layer_types": ["full_attention"] * 7, "sliding_window": None},
    "mistral, types": {"model_type": "mistral", "head_dim": 32, "sliding_window": 24, "layer_types": TYPES},
    "ministral, no types": {"model_type": "ministral", "head_dim": 32, "sliding_window": 24},
    "ministral 3, nothing said": {"model_type": "ministral3", "rope_parameters": None},
    "gemma": {"model_type": "gemma", "hidden_act": "gelu", "head_dim": 16, "rope_theta": 10000.0},
    "granite 3": {
        "model_type": "granite",
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "ernie 4.5": {"model_type": "ernie4_5", "use_bias": True},
    "seed-oss": {"model_type": "seed_oss", "attention_out_bias": True, "mlp_bias": True},
    "helium": {"model_type": "helium", "attention_bias": True, "mlp_bias": True},
    "smollm3, windows": {
        "model_type": "smollm3",
        "use_sliding_window": True,
        "sliding_window": 24,
        "no_rope_layers": [1, 1, 0, 1, 1, 0, 1],
    },
    "smollm3, types": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 24, "layer_types": TYPES},
    "arcee": {"model_type": "arcee", "mlp_bias": True, "attention_bias": True},
    "phi 3 mini": {"model_type": "phi3", "sliding_window": 24, "rope_theta": 10000.0, "rope_scaling": None},
    "phi 3 mini 128k": {
        "model_type": "phi3",
        "original_max_position_embeddings": 128,
        "rope_scaling": {"type": "longrope", "short_factor": [1.1] * 8, "long_factor": [4.0] * 8},
    },
    "phi 4 mini": {
        "model_type": "phi3",
        "original_max_position_embeddings": 128,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", "short_factor": [1.1] * 6, "long_factor": [4.0] * 6},
    },
    "gemma3, untied": {"model_type": "gemma3_text", "tie_word_embeddings": False, "hidden_activation": "silu"},
}


@pytest.mark.parametrize("name", OLDER)
def test_a_config_as_the_hub_has_it_means_what_transformers_makes_of_it(name, tmp_path):
    """The keys of older versions, keys that mean nothing to the kind, and defaults of each kind."""
    sizes = {key: value for key, value in SMALL.items() if key != "head_dim"}
    assert_same(*model_and_spec(tmp_path, {**sizes, **OLDER[name]}))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_with_nothing_but_sizes_gets_the_defaults_of_transformers(kind, tmp_path):
    """What the configuration class fills in, we fill in."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    heads = {"qwen2": 32, "qwen3": 32, "helium": 20}.get(kind, 16)
    values = {
        "model_type": kind,
        **{name: SMALL[name] for name in sizes},
        "hidden_size": 32 * heads,
        "num_attention_heads": heads,
        "pad_token_id": 0,
        **({"head_dim": 32} if kind == "ministral" else {}),  # which transformers cannot do without
    }
    assert_same(*model_and_spec(tmp_path, values))


def test_windows_and_ropes_alternate_as_in_gemma():
    """Five layers with a window and the local rope, then one without."""
    config = transformers.Gemma3TextConfig(**SMALL, sliding_window=24)
    layers = read_spec(json.loads(config.to_json_string())).layers
    assert layers == (*[LayerSpec(24, 0)] * 5, LayerSpec(0, 1), LayerSpec(24, 0))


def test_reading_a_spec_imports_neither_torch_nor_transformers():
    """An engine that is to be ready within a second reads it."""
    program = "import sys, rbee.engine.runners.native.spec\nprint({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
