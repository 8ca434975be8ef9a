"""`system_fingerprint`: what an answer's tokens depend on beside its request, as one word.

Owns what goes into it. Two servers with the same one give the same tokens for the same seed.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

from rbee import __version__

if TYPE_CHECKING:
    from rbee.messages import Ready

_DIGITS = 10


def system_fingerprint(model_digest: str, engine: Ready) -> str:
    """The version in words; model, runner, precision and kernels as a hash."""
    return _fingerprint(model_digest, engine.runner, engine.device, engine.dtype, engine.kernels)


@functools.lru_cache(maxsize=16)
def _fingerprint(*facts: str) -> str:
    digest = hashlib.sha256("\0".join((__version__, *facts)).encode()).hexdigest()
    return f"rbee-{__version__}-{digest[:_DIGITS]}"
