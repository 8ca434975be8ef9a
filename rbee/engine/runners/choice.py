"""The choice of a runner for a config.

Owns the choice and its messages. The runners and what reads models are imported only when chosen: an engine loads torch
only if it computes with it, and one without a model is there sooner.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.config import SYNTHETIC
from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.interface import Unsupported
from rbee.errors import ConfigError, ModelError
from rbee.transport import Progress

if TYPE_CHECKING:
    from rbee.config import EngineConfig
    from rbee.engine.runners.interface import ModelRunner, OnLoading

logger = logging.getLogger(__name__)


def load(config: EngineConfig, on_loading: OnLoading, progress: Progress | None = None) -> ModelRunner:
    """Load the model that `config` names (a ready folder, or "synthetic").

    `on_loading` is called while it loads. `progress` counts chunks of work of loading and of steps, so that a long step
    is not taken for a hang.

    Raises:
        ModelError: the folder cannot be loaded.
        ConfigError: options contradict each other or the model.
    """
    _check(config)
    progress = progress or Progress()
    cache = CacheSize(
        block_size=config.block_size,
        kv_cache_mib=config.kv_cache_mib,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
    )
    if config.model == SYNTHETIC:
        from rbee.engine.runners.synthetic import SyntheticRunner  # noqa: PLC0415 - only the chosen one is imported

        return SyntheticRunner(cache, step_seconds=config.synthetic_step_ms / 1e3, on_progress=progress.advance)
    if config.runner != "torch":
        try:
            return _load_native(config, cache, on_loading, progress)
        except Unsupported as reason:
            _check_fallback(config, reason)
            logger.info("The torch runner serves %s, because the native one cannot: %s.", config.model, reason)
    return _load_torch(config, cache, on_loading, progress)


def _check(config: EngineConfig) -> None:
    """Raise ConfigError for options that contradict each other with any model."""
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
    if config.exact and config.kv_cache_dtype != "auto":
        raise ConfigError(
            f"--exact and --kv-cache-dtype {config.kv_cache_dtype} contradict each other: an exact KV cache has 32 "
            "bits. Leave one of them out."
        )
    if config.runner == "torch" and (option := _native_option(config) or ("--exact" if config.exact else "")):
        raise ConfigError(
            f"--runner torch and {option} contradict each other: that is an option of the native runner. Leave one of "
            "them out."
        )


def _native_option(config: EngineConfig) -> str:
    """The option that only the native runner can follow, as it was given; "" if there is none."""
    if config.quantize != "none":
        return f"--quantize {config.quantize}"
    return f"--kv-cache-dtype {config.kv_cache_dtype}" if config.kv_cache_dtype != "auto" else ""


def _check_fallback(config: EngineConfig, reason: Unsupported) -> None:
    """Raise an error unless the options let the torch runner, which is exact and quantizes nothing, serve the model."""
    if config.runner == "native":
        raise ModelError(
            f"--runner native cannot serve the model in {config.model}: {reason}. Leave --runner out, and the torch "
            "runner serves it."
        ) from reason
    if option := _native_option(config):
        raise ConfigError(
            f"{option} needs the native runner, which cannot serve the model in {config.model}: {reason}. Leave "
            f"{option.split()[0]} out, and the torch runner serves it."
        ) from reason


def _load_native(config: EngineConfig, cache: CacheSize, on_loading: OnLoading, progress: Progress) -> ModelRunner:
    """Make the native runner; Unsupported if it does not support the model or the options."""
    for option, value, expected in (("device", config.device, "cpu"), ("dtype", config.dtype, "auto")):
        if value != expected:
            raise Unsupported(f"--{option} is {value}")
    from rbee.engine.runners.native.spec import read_spec  # noqa: PLC0415 - only what is chosen is imported
    from rbee.models.folder import read_config  # noqa: PLC0415

    path = Path(config.model)
    spec = read_spec(read_config(path), max_model_len=config.max_model_len)
    from rbee.engine.runners.native.runner import NativeRunner  # noqa: PLC0415 - only the chosen one is imported

    return NativeRunner(
        path,
        spec,
        cache,
        quantize=config.quantize,
        exact=config.exact,
        kv_cache="f16" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        threads=config.threads,
        on_loading=on_loading,
        progress=progress,
    )


def _load_torch(config: EngineConfig, cache: CacheSize, on_loading: OnLoading, progress: Progress) -> ModelRunner:
    on_loading("importing torch and transformers", 0, 4)
    from rbee.engine.runners.torch.runner import TorchRunner  # noqa: PLC0415 - takes seconds
    from rbee.models import gguf_of  # noqa: PLC0415
    from rbee.models.gguf import open_gguf  # noqa: PLC0415

    path = Path(config.model)
    gguf = gguf_of(path)
    return TorchRunner(
        path,
        cache,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        on_loading=on_loading,
        on_progress=progress.advance,
        gguf=None if gguf is None else open_gguf(gguf),
    )
