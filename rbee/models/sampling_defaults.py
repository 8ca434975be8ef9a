"""The sampling parameters that a model recommends for requests that leave them out.

Owns which entries of generation_config.json count, those that vLLM takes, and which values are usable. Does not know
requests.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(__name__)

# What a request may ask for too, from and to.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
}


def sampling_defaults(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """The recommended values by name; one that no request could ask for is left out, with a warning."""
    defaults: dict[str, float] = {}
    for name, (low, high) in BOUNDS.items():
        value = generation_config.get(name)
        if value is None:
            continue
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not low <= number <= high or (name == "top_k" and number != int(number)):
            _log.warning(
                "generation_config.json recommends %s %r, which is left out: no request may ask it", name, value
            )
        else:
            defaults[name] = int(number) if name == "top_k" else float(number)
    return defaults
