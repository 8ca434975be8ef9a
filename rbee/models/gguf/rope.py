"""What a GGUF file says of rotary position embeddings, as a config.json's rope_parameters.

Owns the translation of llama.cpp's scaling (llama-context.cpp, and rope_yarn of ggml) into methods of transformers.
Knows no architecture.

llama.cpp divides each frequency by the scaling factor and by the value that a tensor has for it. The method "longrope"
does the same with its two lists of factors, so that every such rope can be expressed. Where a file has one list, both
are that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbee.models.gguf.keys import Keys

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = frozenset({FREQUENCIES, LONG, SHORT})
_KINDS = ("none", "linear", "yarn", "longrope")


def rope_parameters(keys: Keys, *, head_dim: int, partial: bool = False, truncate: bool = True) -> dict[str, Any]:
    """The rope of all layers, or of those without a window.

    Args:
        keys: of the model.
        head_dim: of queries and keys.
        partial: whether the architecture may turn only a part of each head.
        truncate: yarn's range is rounded outwards to whole dimensions.
    """
    turned = keys.count("rope.dimension_count", head_dim, most=head_dim)
    if turned % 2 or (turned != head_dim and not partial):
        keys.refuse("rope.dimension_count", f"is {turned}, and {head_dim} was expected, which a head has")
    found: dict[str, Any] = {"rope_theta": keys.number("rope.freq_base", 10000.0)}
    if partial:
        # transformers rounds the product of both down.
        share = turned / head_dim
        found["partial_rotary_factor"] = share if int(head_dim * share) == turned else (turned + 0.5) / head_dim
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in _KINDS:
        keys.refuse("rope.scaling.type", f"is {kind!r}, and {', '.join(_KINDS)} are known")
    factor = _factor(keys) if kind != "none" else 1.0
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        return {**found, **_yarn(keys, factor, attention), **({} if truncate else {"truncate": False})}
    return {**found, **_stretched(keys, turned // 2, factor, attention)}


def _factor(keys: Keys) -> float:
    """By how much positions are compressed; 0 stands for 1."""
    name = "rope.scaling.factor" if keys.given("rope.scaling.factor") else "rope.scale_linear"
    return keys.number(name, 0.0, positive=False) or 1.0


def _yarn(keys: Keys, factor: float, attention: float) -> dict[str, Any]:
    """Frequencies between the two betas are mixed; cosines and sines grow by attention_factor, unless a key cancels it.

    Most architectures of llama.cpp take 32 and 1 whatever the file says of the betas, and ignore yarn_attn_factor. The
    file has them where the model was trained with them.
    """
    if any(keys.has(tensor) for tensor in TENSORS):
        keys.refuse("rope.scaling.type", "is 'yarn', and a tensor has factors of the frequencies beside it")
    if keys.number("rope.scaling.yarn_ext_factor", 1.0, positive=False) != 1:
        keys.refuse("rope.scaling.yarn_ext_factor", "is not 1, which is not supported")
    cancelled = keys.number("rope.scaling.yarn_log_multiplier", 0.0, positive=False)
    if keys.given("rope.scaling.yarn_attn_factor"):
        attention *= keys.number("rope.scaling.yarn_attn_factor")
    else:
        attention *= _magnitude(factor, 1.0) / _magnitude(factor, cancelled)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": keys.original_length,
        "attention_factor": attention,
        "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
    }


def _magnitude(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _stretched(keys: Keys, size: int, factor: float, attention: float) -> dict[str, Any]:
    """The factors of tensors if there are any, else one for all frequencies."""
    own, long, short = (keys.floats(tensor, size) for tensor in (FREQUENCIES, LONG, SHORT))
    if (long is None) != (short is None) or (own is not None and long is not None):
        keys.refuse("rope.scaling.type", f"needs {LONG} and {SHORT}, or {FREQUENCIES}, or none of these tensors")
    if long is None and own is None and attention == 1:
        return {"rope_type": "default"} if factor == 1 else {"rope_type": "linear", "factor": factor}
    one = own or [1.0] * size
    return {
        "rope_type": "longrope",
        "short_factor": [factor * each for each in short or one],
        "long_factor": [factor * each for each in long or one],
        "original_max_position_embeddings": keys.count("context_length") if short is None else keys.original_length,
        "attention_factor": attention,
    }
