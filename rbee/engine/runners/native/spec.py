"""What the native kernels need to know of a model, read from its config.json.

Owns the description of the Llama family, and the reasons why a model is not one of it. Does not know weights or
kernels. A config means what transformers makes of it, defaults included; imports neither that nor torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rbee.engine.runners.context_length import position_limit
from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.rope import METHODS, Rope, make_rope

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_DIM_MULTIPLE = 16


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer."""

    window: int  # positions that a token sees, its own included; 0 is all before it
    rope: int  # index into `ModelSpec.ropes`


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder of RMS norms, rotary grouped-query attention and gated MLPs."""

    model_type: str  # the name of its kind in config.json
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]  # from the first to the last
    ropes: tuple[Rope, ...]  # those that layers refer to
    rms_norm_eps: float
    activation: Literal["silu", "gelu_tanh"]  # of the gate; gelu in its tanh approximation
    attention_scale: float  # scores are multiplied by this
    embedding_scale: float  # embeddings are multiplied by this
    has_qk_norm: bool  # each head of queries and keys is normed before it is turned
    has_post_norms: bool  # what attention and MLP give is normed before it is added to the residual
    unit_offset_norms: bool  # norms multiply by 1 + their stored weight
    has_qkv_bias: bool  # query, key and value projections have biases
    has_output_bias: bool  # attention's output projection has one
    has_mlp_bias: bool  # gate, up and down projections have biases
    tied_embeddings: bool  # the head is the embedding matrix
    position_limit: int  # tokens that a sequence may have


# What a config.json means that leaves a key out, as in transformers' configuration classes. A kind of model looks at
# the keys that are listed for it and at those that must be there; the others mean nothing to it.
_COMMON: Mapping[str, Any] = {
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
_QWEN: Mapping[str, Any] = {
    "layer_types": None,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"attention_bias": False, "max_position_embeddings": 2048, "mlp_bias": False},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "attention_bias": False, "head_dim": 128},
    "gemma3_text": {
        "attention_bias": False,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": None,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000.0,
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
}
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_NEVER = ("quantization_config", "use_bidirectional_attention", "attn_logit_softcapping", "final_logit_softcapping")

_ACTIVATIONS: Mapping[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_METHODS_WITH_LENGTH = frozenset({"llama3", "yarn", "longrope"})  # the one that the model was trained with
_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Describe the model with this config.json; Unsupported if the kernels do not support it."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise Unsupported(f"its model_type is {kind!r}, and the native kernels do {', '.join(_DEFAULTS)}")
    if kind == "mistral" and "layer_types" in config:
        raise Unsupported("it is a mistral with layer_types, which transformers takes for a ministral")
    for name in _NEVER:
        if config.get(name):
            raise Unsupported(f"its config.json sets {name}")
    defaults = {**dict.fromkeys(_REQUIRED), **_COMMON, **_DEFAULTS[kind]}
    values = {name: config.get(name, default) for name, default in defaults.items()}
    gemma = kind == "gemma3_text"

    hidden, heads = _count(values, "hidden_size"), _count(values, "num_attention_heads")
    kv_heads = heads if values["num_key_value_heads"] is None else _count(values, "num_key_value_heads")
    head_dim = hidden // heads if values["head_dim"] is None else _count(values, "head_dim")
    if heads % kv_heads:
        raise Unsupported(f"its {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    if not head_dim or head_dim % HEAD_DIM_MULTIPLE:
        raise Unsupported(f"its head_dim is {head_dim}, and the native kernels need a multiple of {HEAD_DIM_MULTIPLE}")
    activation = values["hidden_activation" if gemma else "hidden_act"]
    if activation not in _ACTIVATIONS:
        raise Unsupported(f"its activation is {activation!r}, and the native kernels do {', '.join(_ACTIVATIONS)}")

    layer_types = _layer_types(values)
    window = _count(values, "sliding_window") if _SLIDING in layer_types else 0
    ropes = _ropes_by_type(values, layer_types) if gemma else {None: _one_rope(values)}
    rope_names = list(ropes)
    limit = _count(values, "max_position_embeddings")
    asked_bias = bool(values.get("attention_bias"))
    return ModelSpec(
        model_type=kind,
        vocab_size=_count(values, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(values, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(
            LayerSpec(window if name == _SLIDING else 0, rope_names.index(name) if gemma else 0) for name in layer_types
        ),
        ropes=tuple(_rope(parameters, values, head_dim) for parameters in ropes.values()),
        rms_norm_eps=_number(values, "rms_norm_eps"),
        activation=_ACTIVATIONS[activation],
        attention_scale=float((_number(values, "query_pre_attn_scalar") if gemma else head_dim) ** -0.5),
        embedding_scale=float(np.float32(hidden**0.5)) if gemma else 1.0,
        has_qk_norm=kind in ("qwen3", "gemma3_text"),
        has_post_norms=gemma,
        unit_offset_norms=gemma,
        has_qkv_bias=kind == "qwen2" or asked_bias,
        has_output_bias=asked_bias,
        has_mlp_bias=bool(values.get("mlp_bias")),
        tied_embeddings=bool(values["tie_word_embeddings"]),
        position_limit=position_limit(limit, ropes.values()) or limit,
    )


def _layer_types(values: Mapping[str, Any]) -> list[str]:
    """Which layers look back over sliding_window positions, and which over all."""
    num_layers, window = _count(values, "num_hidden_layers"), values.get("sliding_window")
    if "layer_types" not in values:
        return [_FULL if window is None else _SLIDING] * num_layers
    types = values["layer_types"]
    if types is None and "sliding_window_pattern" in values:
        pattern = _count(values, "sliding_window_pattern")
        types = [_SLIDING if (layer + 1) % pattern else _FULL for layer in range(num_layers)]
    elif types is None:
        windowed = values["use_sliding_window"] and window is not None
        first = int(_number(values, "max_window_layers"))
        types = [_SLIDING if windowed and layer >= first else _FULL for layer in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers:
        raise Unsupported(f"its layer_types do not list its {num_layers} layers")
    if unknown := [name for name in types if name not in (_SLIDING, _FULL)]:
        raise Unsupported(f"it has a layer of the type {unknown[0]!r}")
    if _SLIDING in types and not values.get("use_sliding_window", True):
        raise Unsupported("its layer_types ask for sliding windows and use_sliding_window forbids them")
    return types


def _one_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a rope that is the same in all layers."""
    given = _mapping("rope_parameters", values["rope_scaling"] or values["rope_parameters"] or {})
    if nested := [name for name in (_SLIDING, _FULL) if name in given]:
        raise Unsupported(f"it has a rope of its own for {nested[0]}")
    parameters = _completed({"rope_theta": values["rope_theta"], **given}, values)
    original = values["original_max_position_embeddings"]
    if original is not None and parameters["rope_type"] in _METHODS_WITH_LENGTH:
        parameters["original_max_position_embeddings"] = original
    return parameters


def _ropes_by_type(values: Mapping[str, Any], layer_types: list[str]) -> dict[str | None, dict[str, Any]]:
    """The parameters of each type of layer: the older keys scale the layers without a window."""
    given = _mapping("rope_parameters", values["rope_parameters"] or {})
    bases = {_FULL: values["rope_theta"], _SLIDING: values["rope_local_base_freq"]}
    ropes: dict[str | None, dict[str, Any]] = {}
    for name in dict.fromkeys(layer_types):
        scaling = values["rope_scaling"] if name == _FULL else None
        own = {**_mapping("rope_parameters", given.get(name) or {}), **_mapping("rope_scaling", scaling or {})}
        ropes[name] = _completed({"rope_theta": bases[name], **own}, values)
    return ropes


def _completed(parameters: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """With a rope_type that is known, and the length that the model was trained with."""
    method = parameters.get("rope_type", parameters.get("type", "default"))
    if method not in METHODS:
        raise Unsupported(f"its rope_type is {method!r}, and the native kernels do {', '.join(sorted(METHODS))}")
    share = parameters.get("partial_rotary_factor", values["partial_rotary_factor"])
    if share not in (None, 1):
        raise Unsupported(f"its partial_rotary_factor is {share}, and the native kernels turn whole heads")
    completed = {**parameters, "rope_type": method}
    if method in _METHODS_WITH_LENGTH:
        completed.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    return completed


def _rope(parameters: Mapping[str, Any], values: Mapping[str, Any], head_dim: int) -> Rope:
    # transformers looks for `truncate` beside the types of layers, not within one.
    truncate = bool((values["rope_parameters"] or values["rope_scaling"] or {}).get("truncate", True))
    limit = _count(values, "max_position_embeddings")
    try:
        rope = make_rope(parameters, head_dim=head_dim, max_position=limit, truncate=truncate)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise Unsupported(f"its {parameters['rope_type']} rope cannot be computed ({error!r})") from error
    if not np.isfinite(rope.inverse_frequencies).all() or not math.isfinite(rope.attention_factor):
        raise Unsupported(f"its {parameters['rope_type']} rope has frequencies that are not finite")
    return rope


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values[name]
    if not isinstance(value, int) or value <= 0:
        raise Unsupported(f"its {name} is {value!r}, and a positive whole number was expected")
    return value


def _number(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise Unsupported(f"its {name} is {value!r}, and a number was expected")
    return value


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unsupported(f"its {name} is {value!r}, and an object was expected")
    return value
