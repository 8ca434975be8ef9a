"""Rotary position embeddings: the frequencies that each scaling method of transformers gives.

Owns the arithmetic of the methods. Does not know where their parameters stand in a config.json, nor what rotates with
them. Powers are taken in float64 and rounded to float32, all else is float32 as in transformers: the two differ by
the rounding of its powers, if at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

METHODS = frozenset({"default", "linear", "dynamic", "yarn", "llama3", "longrope"})


@dataclass(frozen=True, eq=False)
class Rope:
    """How queries and keys are turned."""

    inverse_frequencies: Floats  # radians per position, float32 [size / 2]
    attention_factor: float  # cosines and sines are multiplied by this


def make_rope(parameters: Mapping[str, Any], *, size: int, max_position: int, truncate: bool) -> Rope:
    """The rope that `parameters` describe, for sequences within the model's position limit.

    Args:
        parameters: as in a config's rope_parameters: rope_type (one of METHODS), rope_theta and what the method needs.
        size: numbers of a head that are turned, even.
        max_position: the config's max_position_embeddings.
        truncate: for yarn, whether its range is rounded outwards to whole dimensions.

    LookupError, TypeError, ValueError or ArithmeticError: the method lacks a parameter, or cannot work with it.
    """
    base = parameters["rope_theta"]
    match parameters["rope_type"]:
        case "default":
            return Rope(_frequencies(base, size), 1.0)
        case "linear":
            return Rope(_frequencies(base, size) / np.float32(parameters["factor"]), 1.0)
        case "dynamic":
            # Up to max_position the stretch is 1; further on, where it would grow, no sequence goes.
            factor = parameters["factor"]
            stretch = (factor * max_position / max_position) - (factor - 1)
            return Rope(_frequencies(base * stretch ** (size / (size - 2)), size), 1.0)
        case "yarn":
            return _yarn(parameters, size, max_position, truncate=truncate)
        case "llama3":
            return Rope(_llama3(parameters, size), 1.0)
        case "longrope":
            return _longrope(parameters, size, max_position)
        case other:
            raise ValueError(other)


def _powers(base: float, size: int) -> Floats:
    """`base` to the powers 0, 2 / size, 4 / size ..., float32 [size / 2]."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.power(np.float64(np.float32(base)), exponents.astype(np.float64)).astype(np.float32)


def _frequencies(base: float, size: int) -> Floats:
    return np.float32(1) / _powers(base, size)


def _llama3(parameters: Mapping[str, Any], size: int) -> Floats:
    """Long waves are slowed down, short ones are not, and those between go over smoothly."""
    frequencies = _frequencies(parameters["rope_theta"], size)
    factor = np.float32(parameters["factor"])
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wavelengths = np.float32(1) / frequencies * np.float32(2 * math.pi)
    slowed = np.where(wavelengths > np.float32(original / low), frequencies / factor, frequencies)
    share = (np.float32(1) / wavelengths * np.float32(original) - np.float32(low)) / np.float32(high - low)
    between = ~(wavelengths < np.float32(original / high)) & ~(wavelengths > np.float32(original / low))
    return np.where(between, (np.float32(1) - share) * slowed / factor + share * slowed, slowed)


def _yarn(parameters: Mapping[str, Any], size: int, max_position: int, *, truncate: bool) -> Rope:
    """Dimensions that turn slowly are interpolated, fast ones kept, with a linear ramp between."""
    base, original = parameters["rope_theta"], parameters["original_max_position_embeddings"]
    factor = parameters["factor"]
    if factor is None:
        factor = max_position / original

    def turning(rotations: float) -> float:
        """The dimension that turns this often within the original length."""
        return float((size * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(base)))

    low, high = turning(parameters.get("beta_fast") or 32), turning(parameters.get("beta_slow") or 1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(size // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    one = np.float32(1)
    kept = one - np.clip(ramp, 0, 1)
    powers = _powers(base, size)
    frequencies = one / (np.float32(factor) * powers) * (one - kept) + one / powers * kept
    return Rope(frequencies, _yarn_attention(parameters, factor))


def _yarn_attention(parameters: Mapping[str, Any], factor: float) -> float:
    given, mscale, all_dim = (parameters.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given is not None:
        return float(given)
    return magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1)


def _longrope(parameters: Mapping[str, Any], size: int, max_position: int) -> Rope:
    """The factors of short sequences. `context_length` has put those of long ones in their place where they are due."""
    original, factor = parameters["original_max_position_embeddings"], parameters.get("factor")
    if factor is None:
        factor = max_position / original
    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    stretches = np.asarray(parameters["short_factor"], dtype=np.float32)
    if stretches.shape != (size // 2,):
        raise ValueError("short_factor")
    return Rope(np.float32(1) / (stretches * _powers(parameters["rope_theta"], size)), float(attention_factor))
