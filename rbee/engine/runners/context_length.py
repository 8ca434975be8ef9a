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


MIB = 1 << 20
# Of what the weights leave, the cache takes this share if the user names no size: the system and the server need memory
# too, and it is there to be filled, by cached prefixes.
_SHARE = 4
_LEAST, _MOST = 256 * MIB, 8192 * MIB  # of a cache whose size the machine decides


@dataclass(frozen=True, kw_only=True)
class CacheSize:
    """The user's limits of the KV cache."""

    block_size: int  # tokens in a block
    kv_cache_mib: int  # memory; 0 takes a share of what the machine has left
    max_model_len: int = 0  # tokens of one sequence; 0 takes what the model and the cache allow
    max_num_seqs: int = 256  # sequences that can need the cache at once; no more is reserved than fits them all


class Fit(NamedTuple):
    """A CacheSize applied to one model."""

    num_blocks: int
    max_model_len: int


def fit(
    size: CacheSize, *, block_bytes: int, limit: int | None, path: Path, weight_bytes: int = 0, available: int
) -> Fit:
    """Apply `size` to a model with blocks of `block_bytes`; `limit` is the model's own length limit, or None.

    `weight_bytes` are still to be loaded into the `available` bytes, and the cache with them.

    ConfigError: max_model_len is more than the model or the cache allows, or neither limits it; weights and cache need
    more than is available. ModelError: the cache does not hold a single block.
    """
    check_memory(weight_bytes, available=available, path=path)
    cache_bytes = size.kv_cache_mib * MIB or default_cache_bytes(weight_bytes, available=available)
    affordable = cache_bytes // block_bytes
    max_model_len = _max_model_len(limit, path, size.max_model_len, affordable * size.block_size, cache_bytes // MIB)
    num_blocks = min(affordable, size.max_num_seqs * -(-max_model_len // size.block_size))
    needed = weight_bytes + num_blocks * block_bytes
    if needed > available:
        raise ConfigError(
            f"The model in {path} needs {_mib(weight_bytes)} MiB for its weights and {_mib(num_blocks * block_bytes)} "
            f"MiB for its KV cache, and {_mib(available)} MiB of memory are available. Give less with --kv-cache-mib "
            "or --max-model-len, serve a smaller model, or end other programs."
        )
    return Fit(num_blocks, max_model_len)


def default_cache_bytes(weight_bytes: int, *, available: int) -> int:
    """What the machine decides: at most so much, and no more than sequences can fill."""
    return min(max((available - weight_bytes) // _SHARE, _LEAST), _MOST)


def check_memory(weight_bytes: int, *, available: int, path: Path) -> None:
    """Raise ConfigError if weights of this size cannot be loaded."""
    if weight_bytes > available:
        raise ConfigError(
            f"The weights of the model in {path} need {_mib(weight_bytes)} MiB, and {_mib(available)} MiB of memory "
            "are available. Serve a smaller model or one of fewer bits, or end other programs."
        )


def _mib(size: int) -> int:
    return -(-size // MIB)


def position_limit(limit: int | None, ropes: Iterable[Mapping[str, Any]]) -> int | None:
    """Tokens that a model takes with these rope_parameters; `limit` is its max_position_embeddings.

    `dynamic` ends at its original length, or at `limit`. Beyond that it changes the frequencies of all rows, so that a
    request would depend on its neighbours.
    """
    for rope in ropes:
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "dynamic" and original:
            limit = min(limit or original, original)
    return limit


def with_one_longrope(rope: Mapping[str, Any], *, limit: int | None, max_model_len: int) -> dict[str, Any]:
    """These rope_parameters, with the factors of `longrope` that all sequences get, in both lists.

    The method has factors for sequences within the original length, and others for longer ones. Keys that are cached
    were turned with one of them, and requests of one step share the frequencies. So the longest sequence that may come
    decides for all, as in llama.cpp and vLLM: `max_model_len`, or `limit`, the max_position_embeddings, if it is 0.
    """
    original = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") != "longrope" or not isinstance(original, int):
        return dict(rope)
    longest = max_model_len or limit
    name = "short_factor" if longest is not None and longest <= original else "long_factor"
    if name == "long_factor" and rope.get("short_factor") != rope.get("long_factor"):
        logger.info(
            "All sequences get the rotary factors for more than %d tokens. --max-model-len %d takes those for less.",
            original,
            original,
        )
    return {**rope, "short_factor": rope.get(name), "long_factor": rope.get(name)}


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
