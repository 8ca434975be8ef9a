"""The families of models that the native kernels serve, by the `model_type` of their config.json.

Owns what a config.json means that leaves a key out, and what a family's code fixes without any key: as in transformers'
configuration and model classes. Does not know what becomes of it (`spec`), nor weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Bias = str | bool  # whether there is one, or the key that decides it


@dataclass(frozen=True, kw_only=True)
class Family:
    """What models of one model_type have in common."""

    defaults: Mapping[str, Any]  # of the keys that mean something to it, beside those of `COMMON`
    qkv_bias: Bias = "attention_bias"
    output_bias: Bias = "attention_bias"
    mlp_bias: Bias = False
    has_gate: bool = True
    has_qk_norm: bool = False
    has_post_norms: bool = False
    unit_offset_norms: bool = False  # and embeddings are multiplied by the root of hidden_size
    has_rope_per_layer_type: bool = False
    has_interleaved_rope: bool = False  # a head's pairs to turn are neighbours
    has_partial_rope: bool = False  # a rope without scaling minds partial_rotary_factor; scaled ones always do
    rope_types: Mapping[str, str] = field(default_factory=dict)  # other names of rope types


REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")

COMMON: Mapping[str, Any] = {
    **dict.fromkeys(REQUIRED),
    "head_dim": None,
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "original_max_position_embeddings": None,
    "partial_rotary_factor": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA: Mapping[str, Any] = {"attention_bias": False, "max_position_embeddings": 2048, "mlp_bias": False}
_MISTRAL: Mapping[str, Any] = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
}
_QWEN: Mapping[str, Any] = {
    "layer_types": None,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
# Text has the same position in all three dimensions of an image's positions, so that "mrope" is a rope like others.
_MROPE = {"mrope": "default"}
_QWEN2_VL = Family(
    defaults={
        **_QWEN,
        "max_window_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    qkv_bias=True,
    output_bias=False,
    rope_types=_MROPE,
)
_MINISTRAL3_ROPE: Mapping[str, Any] = {
    "type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(defaults=_LLAMA, mlp_bias="mlp_bias"),
    "mistral": Family(defaults=_MISTRAL, qkv_bias=False, output_bias=False),
    "ministral": Family(defaults={**_MISTRAL, "layer_types": None}, qkv_bias=False, output_bias=False),
    "ministral3": Family(
        defaults={
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _MINISTRAL3_ROPE,
            "sliding_window": None,
        },
        qkv_bias=False,
        output_bias=False,
    ),
    "qwen2": Family(defaults=_QWEN, qkv_bias=True, output_bias=False),
    "qwen3": Family(defaults={**_QWEN, "attention_bias": False, "head_dim": 128}, has_qk_norm=True),
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3_vl_text": Family(
        defaults={
            "attention_bias": False,
            "head_dim": 128,
            "max_position_embeddings": 128000,
            "num_key_value_heads": 32,
            "rope_theta": 500000.0,
        },
        has_qk_norm=True,
        rope_types=_MROPE,
    ),
    "gemma": Family(
        defaults={
            "attention_bias": False,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "num_key_value_heads": 16,
            "tie_word_embeddings": True,
        },
        unit_offset_norms=True,
    ),
    "gemma3_text": Family(
        defaults={
            "attention_bias": False,
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "layer_types": None,
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rope_local_base_freq": 10000.0,
            "rope_theta": 1000000.0,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
            "vocab_size": 262208,
        },
        has_qk_norm=True,
        has_post_norms=True,
        unit_offset_norms=True,
        has_rope_per_layer_type=True,
    ),
    "granite": Family(
        defaults={
            **_LLAMA,
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        },
        mlp_bias="mlp_bias",
    ),
    "ernie4_5": Family(
        defaults={
            "head_dim": 128,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "use_bias": False,
        },
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        has_interleaved_rope=True,
    ),
    "seed_oss": Family(
        defaults={
            "attention_bias": True,
            "attention_out_bias": False,
            "head_dim": 128,
            "max_position_embeddings": 524288,
            "mlp_bias": False,
            "num_key_value_heads": 8,
        },
        output_bias="attention_out_bias",
        mlp_bias="mlp_bias",
    ),
    "helium": Family(
        defaults={
            "attention_bias": False,
            "head_dim": 128,
            "max_position_embeddings": 4096,
            "mlp_bias": False,
            "num_key_value_heads": 20,
            "rms_norm_eps": 1e-8,
            "rope_theta": 100000.0,
        },
        output_bias=False,
        mlp_bias="mlp_bias",
        has_interleaved_rope=True,
    ),
    "smollm3": Family(
        defaults={
            **_LLAMA,
            "layer_types": None,
            "max_position_embeddings": 32768,
            "no_rope_layer_interval": 4,
            "no_rope_layers": None,
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        mlp_bias="mlp_bias",
    ),
    "arcee": Family(
        defaults={**_LLAMA, "hidden_act": "relu2", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        mlp_bias="mlp_bias",
        has_gate=False,
    ),
    "phi3": Family(
        defaults={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        },
        qkv_bias=False,
        output_bias=False,
        has_partial_rope=True,
        rope_types={"su": "longrope", "yarn": "longrope"},
    ),
}


@dataclass(frozen=True)
class Wrapper:
    """A model_type whose text part is a model of its own, in `text_config`."""

    text: str  # its model_type, if it names none
    tied: bool  # tie_word_embeddings, if the wrapper's config leaves that out
    may_be_flat: bool = False  # without text_config the keys of the text part are the wrapper's own


WRAPPERS: Mapping[str, Wrapper] = {
    "gemma3": Wrapper("gemma3_text", tied=True),
    "mistral3": Wrapper("mistral", tied=True),
    "llava": Wrapper("llama", tied=False),
    "qwen2_vl": Wrapper("qwen2_vl_text", tied=False, may_be_flat=True),
    "qwen2_5_vl": Wrapper("qwen2_5_vl_text", tied=False, may_be_flat=True),
    "qwen3_vl": Wrapper("qwen3_vl_text", tied=False),
}
