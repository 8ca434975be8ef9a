"""How long a sequence may be: what the user asks for, within what the model takes and the KV cache holds.

Owns the decision and its messages. Does not know runners.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rbee.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)


def max_model_len(limit: int | None, path: Path, asked: int, cache_tokens: int, kv_cache_mib: int) -> int:
    """What was asked for, or else as much as both the model and the cache allow.

    Args:
        limit: tokens that the model takes by its own account; None when it does not say.
        path: of the model, for messages.
        asked: --max-model-len, or 0.
        cache_tokens: tokens that the whole KV cache holds.
        kv_cache_mib: the cache's size, for messages.

    Raises:
        ConfigError: what was asked for is more than one of them allows, or nothing was and nobody knows.
        ModelError: the cache does not hold a single block.
    """
    if not asked and limit is None:
        raise ConfigError(f"The model in {path} does not say how long a sequence may be: give --max-model-len.")
    if asked and limit is not None and asked > limit:
        raise ConfigError(f"--max-model-len {asked} is more than the {limit} tokens that the model in {path} can take.")
    if asked > cache_tokens:
        raise ConfigError(
            f"--max-model-len {asked} does not fit --kv-cache-mib {kv_cache_mib}, which holds {cache_tokens} tokens of "
            "this model: raise the latter or lower the former."
        )
    if cache_tokens < 2:
        raise ModelError(f"--kv-cache-mib {kv_cache_mib} is too little for a single block of the model in {path}.")
    if asked or limit is None:
        return asked
    if limit > cache_tokens:
        logger.warning(
            "max_model_len is %d instead of the model's own %d: --kv-cache-mib %d holds no more.",
            cache_tokens,
            limit,
            kv_cache_mib,
        )
    return min(limit, cache_tokens)
