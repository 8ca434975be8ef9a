"""What the native kernels need to know of a model, read from its config.json.

Owns the description of the Llama family, and the reasons why a model is not one of it. Does not know weights or
kernels. A config means what transformers makes of it, with the defaults in `families`; imports neither that nor torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from rbee.engine.runners.context_length import position_limit, with_one_longrope
from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.families import COMMON, FAMILIES, WRAPPERS
from rbee.engine.runners.native.rope import METHODS, Rope, make_rope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rbee.engine.runners.native.families import Bias, Family

HEAD_DIM_MULTIPLE = 16


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer."""

    window: int  # positions that a token sees, its own included; 0 is all before it
    rope: int  # index into `ModelSpec.ropes`


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder of RMS norms, rotary grouped-query attention and MLPs, gated or not."""

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
    activation: Literal["silu", "gelu_tanh", "relu2"]  # of the gate; gelu in its tanh approximation
    has_gate: bool  # otherwise the activation is that of the up projection
    attention_scale: float  # scores are multiplied by this
    embedding_scale: float  # embeddings are multiplied by this
    residual_scale: float  # what attention and MLP give is multiplied by this
    logit_scale: float  # logits are multiplied by this
    query_growth: float  # queries at position p are multiplied by 1 + query_growth * ln(1 + p // query_length)
    query_length: int
    has_qk_norm: bool  # each head of queries and keys is normed before it is turned
    has_post_norms: bool  # what attention and MLP give is normed before it is added to the residual
    unit_offset_norms: bool  # norms multiply by 1 + their stored weight
    has_qkv_bias: bool  # query, key and value projections have biases
    has_output_bias: bool  # attention's output projection has one
    has_mlp_bias: bool  # gate, up and down projections have biases
    interleaved_rope: bool  # in safetensors a head's pairs to turn are neighbours, not half a head apart
    tied_embeddings: bool  # the head is the embedding matrix
    position_limit: int  # tokens that a sequence may have


_NEVER = ("quantization_config", "use_bidirectional_attention", "attn_logit_softcapping", "final_logit_softcapping")
_ACTIVATIONS: Mapping[str, Literal["silu", "gelu_tanh", "relu2"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "relu2",
}
_METHODS_WITH_LENGTH = frozenset({"llama3", "yarn", "longrope"})  # the one that the model was trained with
_GREATEST = 2**31  # a count that is greater is damage
_SLIDING, _FULL = "sliding_attention", "full_attention"
_NO_ROPE = Rope(np.zeros(0, np.float32), 1.0)


def read_spec(config: Mapping[str, Any], *, max_model_len: int = 0) -> ModelSpec:
    """Describe the model with this config.json, or its text part; Unsupported if the kernels do not support it.

    `max_model_len` is the longest sequence that may come, 0: as the model allows. Some ropes depend on it.
    """
    text = _text_config(config)
    kind = text.get("model_type")
    if kind == "mistral" and "layer_types" in text:
        kind = "ministral"
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise Unsupported(f"its model_type is {kind!r}, and the native kernels do {', '.join(FAMILIES)}")
    for name in _NEVER:
        if config.get(name) or text.get(name):
            raise Unsupported(f"its config.json sets {name}")
    family = FAMILIES[kind]
    values = {name: text.get(name, default) for name, default in {**COMMON, **family.defaults}.items()}
    if values["rope_parameters"] is None:
        values["rope_parameters"] = family.defaults.get("rope_parameters")

    hidden, heads = _count(values, "hidden_size"), _count(values, "num_attention_heads")
    kv_heads = heads if values["num_key_value_heads"] is None else _count(values, "num_key_value_heads")
    head_dim = hidden // heads if values["head_dim"] is None else _count(values, "head_dim")
    if heads % kv_heads:
        raise Unsupported(f"its {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    if not head_dim or head_dim % HEAD_DIM_MULTIPLE:
        raise Unsupported(f"its head_dim is {head_dim}, and the native kernels need a multiple of {HEAD_DIM_MULTIPLE}")

    turned = _turned_layers(values)
    layer_types = _layer_types(values, turned)
    window = _count(values, "sliding_window") if _SLIDING in layer_types else 0
    if family.has_rope_per_layer_type:
        by_type = _ropes_by_type(values, layer_types, family)
        parameters, rope_of = list(by_type.values()), {name: index for index, name in enumerate(by_type)}
    else:
        parameters, rope_of = [_one_rope(values, family)], {_SLIDING: 0, _FULL: 0}
    limit = _count(values, "max_position_embeddings")
    parameters = [with_one_longrope(each, limit=limit, max_model_len=max_model_len) for each in parameters]
    ropes = [_rope(each, values, head_dim) for each in parameters]
    query_growth, query_length = _query_growth(parameters[0])
    return ModelSpec(
        model_type=kind,
        vocab_size=_count(values, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(values, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(
            LayerSpec(window if name == _SLIDING else 0, rope_of[name] if turns else len(ropes))
            for name, turns in zip(layer_types, turned, strict=True)
        ),
        ropes=(*ropes, *([] if all(turned) else [_NO_ROPE])),
        rms_norm_eps=_number(values, "rms_norm_eps"),
        activation=_activation(kind, values),
        has_gate=family.has_gate,
        attention_scale=_attention_scale(values, head_dim),
        embedding_scale=float(np.float32(hidden**0.5))
        if family.unit_offset_norms
        else _number({"embedding_multiplier": 1.0, **values}, "embedding_multiplier"),
        residual_scale=_number({"residual_multiplier": 1.0, **values}, "residual_multiplier"),
        logit_scale=1 / _positive({"logits_scaling": 1.0, **values}, "logits_scaling"),
        query_growth=query_growth,
        query_length=query_length,
        has_qk_norm=family.has_qk_norm,
        has_post_norms=family.has_post_norms,
        unit_offset_norms=family.unit_offset_norms,
        has_qkv_bias=_has(family.qkv_bias, values),
        has_output_bias=_has(family.output_bias, values),
        has_mlp_bias=_has(family.mlp_bias, values),
        interleaved_rope=family.has_interleaved_rope,
        tied_embeddings=bool(values["tie_word_embeddings"]),
        position_limit=position_limit(limit, parameters) or limit,
    )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config itself, or that of the text part, whose head is tied where either of the two configs asks for it."""
    kind = config.get("model_type")
    wrapper = WRAPPERS.get(kind) if isinstance(kind, str) else None
    if wrapper is None:
        return config
    flat = {name: value for name, value in config.items() if name != "model_type"} if wrapper.may_be_flat else None
    given = config.get("text_config")
    text = _mapping("text_config", flat if given is None else given)
    tied = config.get("tie_word_embeddings", wrapper.tied) or text.get("tie_word_embeddings")
    return {"model_type": wrapper.text, **text, "tie_word_embeddings": tied}


def _turned_layers(values: Mapping[str, Any]) -> list[bool]:
    """Which layers turn queries and keys: all, but for families with no_rope_layers, which lists those with a rope."""
    num_layers, listed = _count(values, "num_hidden_layers"), values.get("no_rope_layers")
    if "no_rope_layers" not in values:
        return [True] * num_layers
    if listed is None:
        interval = _count(values, "no_rope_layer_interval")
        return [(layer + 1) % interval != 0 for layer in range(num_layers)]
    if not isinstance(listed, list) or len(listed) != num_layers:
        raise Unsupported(f"its no_rope_layers do not list its {num_layers} layers")
    return [bool(turns) for turns in listed]


def _layer_types(values: Mapping[str, Any], turned: list[bool]) -> list[str]:
    """Which layers look back over sliding_window positions, and which over all."""
    num_layers, window = len(turned), values.get("sliding_window")
    windowed = window is not None and values.get("use_sliding_window", True)
    types = values.get("layer_types")
    if types is None:
        if "sliding_window_pattern" in values:
            pattern = _count(values, "sliding_window_pattern")
            slides = [(layer + 1) % pattern != 0 for layer in range(num_layers)]
        elif "max_window_layers" in values:
            first = int(_number(values, "max_window_layers"))
            slides = [windowed and layer >= first for layer in range(num_layers)]
        elif "no_rope_layers" in values:
            slides = [windowed and not turns for turns in turned]
        else:
            slides = [windowed] * num_layers
        types = [_SLIDING if each else _FULL for each in slides]
    if not isinstance(types, list) or len(types) != num_layers:
        raise Unsupported(f"its layer_types do not list its {num_layers} layers")
    if unknown := [name for name in types if name not in (_SLIDING, _FULL)]:
        raise Unsupported(f"it has a layer of the type {unknown[0]!r}")
    if _SLIDING in types and not values.get("use_sliding_window", True):
        raise Unsupported("its layer_types ask for sliding windows and use_sliding_window forbids them")
    return types


def _activation(kind: str, values: Mapping[str, Any]) -> Literal["silu", "gelu_tanh", "relu2"]:
    name = values["hidden_activation" if "hidden_activation" in values else "hidden_act"]
    if kind == "gemma" and name == "gelu":  # the first release wrote so, and meant the approximation
        name = "gelu_pytorch_tanh"
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise Unsupported(f"its activation is {name!r}, and the native kernels do {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _attention_scale(values: Mapping[str, Any], head_dim: int) -> float:
    if "attention_multiplier" in values:
        return _number(values, "attention_multiplier")
    if "query_pre_attn_scalar" in values:
        return float(_positive(values, "query_pre_attn_scalar") ** -0.5)
    return float(head_dim**-0.5)


def _query_growth(rope: Mapping[str, Any]) -> tuple[float, int]:
    """How queries grow with their position (llama_4_scaling_beta), if at all."""
    if not rope.get("llama_4_scaling_beta"):
        return 0.0, 1
    return _number(rope, "llama_4_scaling_beta"), _count(rope, "original_max_position_embeddings")


def _one_rope(values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The parameters of a rope that is the same in all layers."""
    given = _mapping("rope_parameters", values["rope_scaling"] or values["rope_parameters"] or {})
    if nested := [name for name in (_SLIDING, _FULL) if name in given]:
        raise Unsupported(f"it has a rope of its own for {nested[0]}")
    parameters = _completed({"rope_theta": values["rope_theta"], **given}, values, family)
    original = values["original_max_position_embeddings"]
    if original is not None and parameters["rope_type"] in _METHODS_WITH_LENGTH:
        parameters["original_max_position_embeddings"] = original
    return parameters


def _ropes_by_type(values: Mapping[str, Any], layer_types: list[str], family: Family) -> dict[str, dict[str, Any]]:
    """The parameters of each type of layer: the older keys scale the layers without a window."""
    given = _mapping("rope_parameters", values["rope_parameters"] or {})
    bases = {_FULL: values["rope_theta"], _SLIDING: values["rope_local_base_freq"]}
    ropes: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(layer_types):
        scaling = values["rope_scaling"] if name == _FULL else None
        own = {**_mapping("rope_parameters", given.get(name) or {}), **_mapping("rope_scaling", scaling or {})}
        ropes[name] = _completed({"rope_theta": bases[name], **own}, values, family)
    return ropes


def _completed(parameters: dict[str, Any], values: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """With a rope_type that is known, the share of a head that is turned, and the length of training."""
    method = parameters.get("rope_type", parameters.get("type", "default"))
    method = family.rope_types.get(method, method) if isinstance(method, str) else None
    if method not in METHODS:
        raise Unsupported(f"its rope_type is {method!r}, and the native kernels do {', '.join(sorted(METHODS))}")
    completed = {"partial_rotary_factor": values["partial_rotary_factor"], **parameters, "rope_type": method}
    if method == "default" and not family.has_partial_rope:
        completed["partial_rotary_factor"] = None
    if method in _METHODS_WITH_LENGTH:
        completed.setdefault("original_max_position_embeddings", values["max_position_embeddings"])
    return completed


def _rope(parameters: Mapping[str, Any], values: Mapping[str, Any], head_dim: int) -> Rope:
    # transformers looks for `truncate` beside the types of layers, not within one.
    beside = _mapping("rope_scaling", values["rope_parameters"] or values["rope_scaling"] or {})
    truncate = bool(beside.get("truncate", True))
    limit = _count(values, "max_position_embeddings")
    size = _turned_size(parameters["partial_rotary_factor"], head_dim)
    try:
        rope = make_rope(parameters, size=size, max_position=limit, truncate=truncate)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise Unsupported(f"its {parameters['rope_type']} rope cannot be computed ({error!r})") from error
    if not np.isfinite(rope.inverse_frequencies).all() or not math.isfinite(rope.attention_factor):
        raise Unsupported(f"its {parameters['rope_type']} rope has frequencies that are not finite")
    return rope


def _turned_size(share: Any, head_dim: int) -> int:
    """Numbers of a head that are turned."""
    if share is None:
        return head_dim
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise Unsupported(f"its partial_rotary_factor is {share!r}, and a share of a head was expected")
    size = int(head_dim * share)
    if size % 2 or not size:
        raise Unsupported(f"its partial_rotary_factor is {share}: {size} of {head_dim} numbers are not whole pairs")
    return size


def _has(bias: Bias, values: Mapping[str, Any]) -> bool:
    return bool(values[bias]) if isinstance(bias, str) else bias


def _positive(values: Mapping[str, Any], name: str) -> float:
    if not (value := _number(values, name)):
        raise Unsupported(f"its {name} is {value}, and a positive number was expected")
    return value


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or not 0 < value < _GREATEST:
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
