"""Runs any decoder-only transformers model over a paged KV cache, all sequences of a step in one packed forward pass.

Owns the loaded model and its cache, and how large that is. What transformers needs to be told is in `torch_model`,
attention in `kv_cache`. Does not know why a sequence runs now or what becomes of its logits.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from rbee.engine import torch_model
from rbee.engine.kv_cache import KVCache
from rbee.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PretrainedConfig

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.model_runner import Progress

logger = logging.getLogger(__name__)


class TorchRunner:
    """A `ModelRunner` on torch; loads in its constructor.

    Args:
        path: a ready folder: config.json and *.safetensors.
        device: where weights and cache live.
        dtype: "float32", "bfloat16", "float16" or "auto" (float32 on a CPU, the model's own elsewhere).
        threads: compute threads; 0 takes one per core this process may use. Set for the whole process.
        max_model_len: tokens of one sequence; 0 takes what the model and the KV cache allow.
        max_num_seqs: sequences that can ever need the cache at once; more than fits them all is not reserved.
        block_size: tokens in a block.
        kv_cache_mib: memory for the cache.
        progress: told what happens.

    Raises:
        ModelError: the folder cannot be served.
        ConfigError: `max_model_len` is more than the model or the cache allows.
    """

    name = "torch"

    def __init__(
        self,
        path: Path,
        *,
        device: str,
        dtype: str,
        threads: int,
        max_model_len: int,
        max_num_seqs: int,
        block_size: int,
        kv_cache_mib: int,
        progress: Progress,
    ) -> None:
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        if not logger.isEnabledFor(logging.DEBUG):
            torch_model.be_quiet()
        config = torch_model.load_config(path)
        progress("loading weights", 1, 4)
        own = dtype == "auto" and torch.device(device).type != "cpu"
        wanted = None if own else getattr(torch, "float32" if dtype == "auto" else dtype)
        self._model = torch_model.load_model(path, config, dtype=wanted, device=device)
        progress("trying the model", 2, 4)
        shapes = torch_model.probe(path, self._model)
        progress("reserving the KV cache", 3, 4)
        self.device = device
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        self.vocab_size = int(config.get_text_config(decoder=True).vocab_size)
        block_bytes = KVCache.bytes_per_block(shapes, block_size, self._model.dtype)
        affordable = (kv_cache_mib << 20) // block_bytes
        self.max_model_len = _max_model_len(config, path, max_model_len, affordable * block_size, kv_cache_mib)
        self.num_blocks = min(affordable, max_num_seqs * -(-self.max_model_len // block_size))
        self._cache = KVCache(
            shapes, num_blocks=self.num_blocks, block_size=block_size, dtype=self._model.dtype, device=device
        )
        torch_model.use_attention(self._model, self._cache.attend)
        progress("ready", 4, 4)

    def execute(self, batch: InputBatch) -> NDArray[np.float32]:
        """One forward pass; see `ModelRunner.execute`."""
        self._cache.begin_step(batch)
        token_ids, positions, rows = (
            torch.from_numpy(array).to(self.device) for array in (batch.token_ids, batch.positions, batch.sampling_rows)
        )
        logits = torch_model.forward(self._model, token_ids[None], positions[None], rows)
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result


def _max_model_len(config: PretrainedConfig, path: Path, asked: int, cache_tokens: int, kv_cache_mib: int) -> int:
    """What was asked for, or else as much as both the model and the cache allow."""
    limit = torch_model.position_limit(config)
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
