"""Runs any decoder-only transformers model over a paged KV cache, all sequences of a step in one packed forward pass.

Owns the loaded model and its cache. Does not know why a sequence runs now or what becomes of its logits.
"""

from __future__ import annotations

import contextlib
import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from rbee.engine.memory import available_memory
from rbee.engine.processors import usable_processors
from rbee.engine.runners.context_length import check_memory, fit
from rbee.engine.runners.interface import StepOutput
from rbee.engine.runners.torch import model as torch_model
from rbee.engine.runners.torch.gguf_model import load_gguf_model
from rbee.engine.runners.torch.kv_cache import KVCache
from rbee.engine.runners.torch.probe import probe
from rbee.errors import ConfigError, ModelError
from rbee.models.folder import read_config
from rbee.models.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.runners.context_length import CacheSize
    from rbee.engine.runners.interface import OnLoading, OnProgress
    from rbee.models.gguf import GGUFModel

logger = logging.getLogger(__name__)


class TorchRunner:
    """A `ModelRunner` on torch; loads in its constructor.

    Args:
        path: a ready folder: config.json and, unless `gguf` has the weights, *.safetensors.
        cache: what the KV cache may take.
        device: where weights and cache live.
        dtype: "float32", "bfloat16", "float16" or "auto" (float32 on a CPU, the model's own elsewhere).
        threads: compute threads; 0 takes one per core this process may use. Set for the whole process.
        on_loading: called for each part of loading.
        on_progress: called before each layer's attention.
        gguf: the GGUF files with the weights, of which config.json was made.

    ModelError: the folder cannot be served. ConfigError: max_model_len does not fit, or there is no such device.
    """

    name = "torch"
    window = 0  # what its layers must not see is masked, but read
    pool = None

    def __init__(
        self,
        path: Path,
        cache: CacheSize,
        *,
        device: str,
        dtype: str,
        threads: int,
        on_loading: OnLoading,
        on_progress: OnProgress = lambda: None,
        gguf: GGUFModel | None = None,
    ) -> None:
        torch.set_num_threads(threads or usable_processors())
        if not logger.isEnabledFor(logging.DEBUG):
            torch_model.be_quiet()
        _check_device(device)
        on_loading("loading weights", 1, 4)
        own = dtype == "auto" and torch.device(device).type != "cpu"
        wanted = None if own else getattr(torch, "float32" if dtype == "auto" else dtype)
        check_memory(
            _num_weights(path, gguf) * (wanted or torch.bfloat16).itemsize, available=_available(device), path=path
        )
        if gguf is None:
            self._model = torch_model.load_model(path, dtype=wanted, device=device, max_model_len=cache.max_model_len)
        else:
            self._model = load_gguf_model(
                read_config(path), gguf, dtype=wanted, device=device, max_model_len=cache.max_model_len
            )
        on_loading("trying the model", 2, 4)
        layers = probe(path, self._model)
        on_loading("reserving the KV cache", 3, 4, len(layers), len(layers))
        self.device = device
        self.dtype = str(self._model.dtype).removeprefix("torch.")
        self.kernels = f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
        self.vocab_size = self._model.vocab_size
        self.hidden_size = self._model.hidden_size
        self.has_head = self._model.has_head
        self.num_blocks, self.max_model_len = fit(
            cache,
            block_bytes=KVCache.bytes_per_block(layers, cache.block_size, self._model.dtype),
            limit=self._model.position_limit,
            path=path,
            available=_available(device),
        )
        self._cache = KVCache(
            layers, num_blocks=self.num_blocks, block_size=cache.block_size, dtype=self._model.dtype, device=device
        )
        self._on_progress = on_progress
        self._model.use_attention(self._attend)
        on_loading("ready", 4, 4, len(layers), len(layers))

    def execute(self, batch: InputBatch) -> StepOutput:
        self._cache.begin_step(batch)
        token_ids, positions, rows = (
            torch.from_numpy(array).to(self.device) for array in (batch.token_ids, batch.positions, batch.logits_rows)
        )
        logits = _numpy(self._model.forward(token_ids, positions, rows))
        if not len(batch.hidden_rows):
            return StepOutput(logits)
        hidden_rows = torch.from_numpy(batch.hidden_rows).to(self.device)
        return StepOutput(logits, _numpy(self._model.hidden_states(hidden_rows)))

    def _attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,  # noqa: ARG002 - None: the cache masks
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        **others: Any,  # noqa: ARG002 - `probe` has seen that they change nothing
    ) -> torch.Tensor:
        """A layer's attention; see `model.Attend`."""
        self._on_progress()
        layer: Any = module.layer_idx
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self._cache.attend(layer, query, key, value, scaling=scale, softcap=softcap, sinks=s_aux)


def _numpy(rows: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = rows.float().contiguous().cpu().numpy()
    return array


def _available(device: str) -> int:
    """Bytes of memory that the device has left."""
    return available_memory() if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[0]


def _num_weights(path: Path, gguf: GGUFModel | None) -> int:
    """By the files' headers. If one is damaged it is 0, and the load raises the error."""
    if gguf is not None:
        return sum(math.prod(placed.stored.shape) for placed in gguf.tensors.values())
    with contextlib.suppress(ModelError):
        headers = [read_safetensors_header(file) for file in path.glob("*.safetensors")]
        return sum(math.prod(tensor.shape) for header in headers for tensor in header.values())
    return 0


def _check_device(device: str) -> None:
    """Allocate on the device before the weights are loaded: torch accepts names of devices that are absent."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = torch_model.first_line(error).partition(". ")[0]
        raise ConfigError(f"--device {device} cannot be used: {reason}.") from error
