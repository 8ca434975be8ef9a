"""The size of the KV cache, by the user's limits, the model's and the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.engine.runners.context_length import MIB, CacheSize, check_memory, fit
from rbee.errors import ConfigError

BLOCK = MIB  # bytes of a block of 16 tokens
MODEL = Path("/models/m")
GIB = 1024 * MIB


def blocks(available, *, weights=0, kv_cache_mib=0, limit=1 << 20, max_model_len=0):
    """How many a model gets."""
    size = CacheSize(block_size=16, kv_cache_mib=kv_cache_mib, max_model_len=max_model_len)
    fitted = fit(size, block_bytes=BLOCK, limit=limit, path=MODEL, weight_bytes=weights, available=available)
    assert fitted.max_model_len <= fitted.num_blocks * 16
    return fitted.num_blocks


def test_the_machine_decides_if_the_user_does_not():
    """A quarter of what the weights leave, within limits, and never more than sequences can fill."""
    assert blocks(24 * GIB, weights=4 * GIB) == 5 * 1024
    assert blocks(200 * GIB) == 8 * 1024
    assert blocks(600 * MIB) == 256
    assert blocks(24 * GIB, limit=16) == 256
    assert blocks(24 * GIB, kv_cache_mib=7) == 7


def test_memory_that_is_not_there_is_refused_with_the_numbers():
    """Before anything is reserved: the weights alone, or with the cache that they need."""
    with pytest.raises(ConfigError, match=r"model in /models/m need 2048 MiB, and 1024 MiB of memory are available"):
        blocks(GIB, weights=2 * GIB)
    with pytest.raises(ConfigError, match=r"needs 900 MiB for its weights and 256 MiB for its KV cache, and 1024 MiB"):
        blocks(GIB, weights=900 * MIB)
    with pytest.raises(ConfigError, match=r"100 MiB for its KV cache, and 99 MiB .* less with --kv-cache-mib"):
        blocks(99 * MIB, kv_cache_mib=100)
    check_memory(GIB, available=GIB, path=MODEL)
    assert blocks(GIB, weights=900 * MIB, kv_cache_mib=124) == 124
