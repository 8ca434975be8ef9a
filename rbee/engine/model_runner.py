"""What the engine expects of whatever computes logits, and the choice of one for a config.

Owns the interface. The runners themselves are imported only when chosen, so that a synthetic engine never loads torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rbee.config import SYNTHETIC
from rbee.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rbee.config import EngineConfig
    from rbee.engine.input_batch import InputBatch

    Progress = Callable[[str, int, int], None]
    """Called with (stage, parts done, parts in all) while a model loads."""


class ModelRunner(Protocol):
    """A loaded model with a KV cache of `num_blocks` blocks.

    Attributes:
        name: "torch" or "synthetic", for people.
        device: where it computes, for people.
        dtype: precision of weights and KV cache, for people.
        vocab_size: width of the logits; prompt tokens must be smaller.
        max_model_len: tokens that one sequence may have, prompt plus output; they fit the KV cache.
        num_blocks: blocks in the KV cache.
    """

    name: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    num_blocks: int

    def execute(self, batch: InputBatch) -> NDArray[np.float32]:
        """Compute a step.

        Returns:
            Logits, float32 [len(batch.logits_rows), vocab_size], C-contiguous, in that order. A row that the model
            could not compute properly is not finite; the others do not suffer from it.
        """
        ...


def load(config: EngineConfig, progress: Progress) -> ModelRunner:
    """Load the model that `config` names (a ready folder, or "synthetic").

    Raises:
        ModelError: the folder cannot be loaded; the message names it and the reason.
        ConfigError: options that contradict each other or the model.
    """
    if config.runner != "auto" and (config.runner == "synthetic") != (config.model == SYNTHETIC):
        raise ConfigError(
            f"--runner {config.runner} cannot run --model {config.model}: the synthetic runner and the synthetic model "
            "need each other. Leave --runner out."
        )
    if config.model == SYNTHETIC:
        from rbee.engine.synthetic_runner import SyntheticRunner  # noqa: PLC0415 - only the chosen one is imported

        return SyntheticRunner(
            step_seconds=config.synthetic_step_ms / 1e3,
            max_model_len=config.max_model_len,
            block_size=config.block_size,
            kv_cache_mib=config.kv_cache_mib,
        )
    progress("importing torch and transformers", 0, 4)
    from rbee.engine.torch_runner import TorchRunner  # noqa: PLC0415 - takes seconds

    return TorchRunner(
        Path(config.model),
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        kv_cache_mib=config.kv_cache_mib,
        progress=progress,
    )
