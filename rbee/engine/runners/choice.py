"""What the engine expects of whatever computes logits, and the choice of one for a config.

Owns the interface and the choice. The runners themselves are imported only when chosen, so that no engine loads torch
that does not compute with it.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rbee.config import SYNTHETIC
from rbee.engine.runners.native.spec import Unsupported, read_spec
from rbee.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from rbee.config import EngineConfig
    from rbee.engine.input_batch import InputBatch
    from rbee.engine.sampler import ThreadPool

    Progress = Callable[[str, int, int], None]
    """Called with (stage, parts done, parts in all) while a model loads."""

logger = logging.getLogger(__name__)


class ModelRunner(Protocol):
    """A loaded model with a KV cache of `num_blocks` blocks.

    Attributes:
        name: "native", "torch" or "synthetic", for people.
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

    @property
    def pool(self) -> ThreadPool | None:
        """Threads of the runner's that the sampler may use between two steps; None if it has none to share."""

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
    _check(config)
    if config.model == SYNTHETIC:
        from rbee.engine.runners.synthetic import SyntheticRunner  # noqa: PLC0415 - only the chosen one is imported

        return SyntheticRunner(
            step_seconds=config.synthetic_step_ms / 1e3,
            max_model_len=config.max_model_len,
            block_size=config.block_size,
            kv_cache_mib=config.kv_cache_mib,
        )
    if config.runner != "torch":
        try:
            return _load_native(config, progress)
        except Unsupported as reason:
            _check_fallback(config, reason)
            logger.info("The torch runner serves %s, because the native one cannot: %s.", config.model, reason)
    return _load_torch(config, progress)


def _check(config: EngineConfig) -> None:
    """Raise a ConfigError for options that contradict each other, whatever the model is like."""
    if config.runner != "auto" and (config.runner == "synthetic") != (config.model == SYNTHETIC):
        raise ConfigError(
            f"--runner {config.runner} cannot run --model {config.model}: the synthetic runner and the synthetic model "
            "need each other. Leave --runner out."
        )
    if config.runner == "native" and (config.device != "cpu" or config.dtype != "auto"):
        option = f"--device {config.device}" if config.device != "cpu" else f"--dtype {config.dtype}"
        raise ConfigError(
            f"--runner native and {option} contradict each other: the native runner computes on the CPU, as precisely "
            "as --exact and --quantize say. Leave one of them out."
        )
    if config.runner == "torch" and (config.exact or config.quantize != "none"):
        option = "--exact" if config.exact else f"--quantize {config.quantize}"
        raise ConfigError(
            f"--runner torch and {option} contradict each other: that is an option of the native runner. Leave one of "
            "them out."
        )


def _check_fallback(config: EngineConfig, reason: Unsupported) -> None:
    """Raise an error if the options do not let another runner than the native one serve the model.

    It computes exactly anyway, but cannot quantize.
    """
    if config.runner == "native":
        raise ModelError(
            f"--runner native cannot serve the model in {config.model}: {reason}. Leave --runner out, and the torch "
            "runner serves it."
        ) from reason
    if config.quantize != "none":
        raise ConfigError(
            f"--quantize {config.quantize} needs the native runner, which cannot serve the model in {config.model}: "
            f"{reason}. Leave --quantize out, and the torch runner serves it."
        ) from reason


def _load_native(config: EngineConfig, progress: Progress) -> ModelRunner:
    """The native runner.

    Raises:
        Unsupported: it does not do the model, or what the options ask for.
    """
    for option, value, expected in (("device", config.device, "cpu"), ("dtype", config.dtype, "auto")):
        if value != expected:
            raise Unsupported(f"--{option} is {value}")
    path = Path(config.model)
    spec = read_spec(_read_config(path))
    from rbee.engine.runners.native.runner import NativeRunner  # noqa: PLC0415 - only the chosen one is imported

    return NativeRunner(
        path,
        spec,
        quantize=config.quantize,
        exact=config.exact,
        threads=config.threads,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        block_size=config.block_size,
        kv_cache_mib=config.kv_cache_mib,
        progress=progress,
    )


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelError(
            f"The folder {path} holds no model: config.json cannot be read ({error.strerror or error})."
        ) from error
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON ({error}). Copy the model's folder again.") from error
    if not isinstance(values, dict):
        raise ModelError(f"{file} does not describe a model. Copy the model's folder again.")
    return values


def _load_torch(config: EngineConfig, progress: Progress) -> ModelRunner:
    progress("importing torch and transformers", 0, 4)
    from rbee.engine.runners.torch.runner import TorchRunner  # noqa: PLC0415 - takes seconds

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
