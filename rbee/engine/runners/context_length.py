"""How many blocks the KV cache has, and how long a sequence may be.

Owns the decision and its messages. Does not know runners.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The user's limits of the KV cache."""

    block_size: int  # tokens in a block
    kv_cache_mib: int  # memory
    max_model_len: int = 0  # tokens of one sequence; 0 takes what the model and the cache allow
    max_num_seqs: int = 256  # sequences that can need the cache at once; no more is reserved than fits them all


class Fit(NamedTuple):
    """A CacheSize applied to one model."""

    num_blocks: int
    max_model_len: int


def fit(size: CacheSize, *, block_bytes: int, limit: int | None, path: Path) -> Fit:
    """Apply `size` to a model with blocks of `block_bytes`; `limit` is the model's own length limit, or None.

    ConfigError: max_model_len is more than the model or the cache allows, or neither limits it. ModelError: the cache
    does not hold a single block.
    """
    affordable = (size.kv_cache_mib << 20) // block_bytes
    max_model_len = _max_model_len(limit, path, size.max_model_len, affordable * size.block_size, size.kv_cache_mib)
    return Fit(min(affordable, size.max_num_seqs * -(-max_model_len // size.block_size)), max_model_len)


def position_limit(limit: int | None, ropes: Iterable[Mapping[str, Any]]) -> int | None:
    """Tokens that a model takes with these rope_parameters; `limit` is its max_position_embeddings.

    `longrope` and `dynamic` end at the original length (`dynamic`: its max_position_embeddings). Beyond it they change
    the frequencies of all rows, so that a request would depend on its neighbours. A `longrope` with the same factors
    for long and short sequences changes nothing.
    """
    for rope in ropes:
        original = rope.get("original_max_position_embeddings")
        changes = rope.get("rope_type") == "dynamic" or rope.get("short_factor") != rope.get("long_factor")
        if rope.get("rope_type") in ("longrope", "dynamic") and changes and original:
            limit = min(limit or original, original)
    return limit


def _max_model_len(limit: int | None, path: Path, asked: int, cache_tokens: int, kv_cache_mib: int) -> int:
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
