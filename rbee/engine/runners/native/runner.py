"""Runs a model of the Llama family on the CPU with our own kernels: one native call for a step's whole mixed batch.

Owns the loaded model and the compute threads. Imports no torch. Does not know what a model must be like (`spec`),
where its weights come from (`weights`) or how it is computed (`native/kernels`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np

from rbee.engine import _kernels
from rbee.engine.memory import available_memory
from rbee.engine.processors import usable_processors
from rbee.engine.runners.context_length import fit
from rbee.engine.runners.interface import StepOutput
from rbee.engine.runners.native.weight_plan import pack
from rbee.engine.runners.native.weights import FORMAT_NAMES, plan_weights
from rbee.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.runners.context_length import CacheSize
    from rbee.engine.runners.interface import OnLoading
    from rbee.engine.runners.native.spec import ModelSpec
    from rbee.engine.runners.native.weight_plan import WeightPlan
    from rbee.transport import Progress


class NativeRunner:
    """A `ModelRunner` on the kernels of `native/kernels`; loads in its constructor.

    Args:
        path: a ready folder.
        spec: of its config.json.
        cache: what the KV cache may take.
        quantize: for matrices that are stored as floats: "none", "q8" or "q4".
        exact: float32 activations and KV cache, for the torch runner's tokens; otherwise activations in 8 bits wherever
            weights are quantized.
        kv_cache: what the KV cache holds, unless `exact`: binary16 numbers, or 8-bit ones with scales.
        threads: compute threads; 0 takes one per core this process may use. Between steps they wait for other work.
        on_loading: called for each part of loading.
        progress: counts the chunks of work of loading and of steps.
        instruction_set: "auto", or one of "avx512", "avx2" and "portable" that the processor has.

    ModelError: the weights cannot be read. Unsupported: the kernels do not know a format of the weights. ConfigError:
    max_model_len is more than the model or the cache allows, or the cache does not fit in memory.
    """

    name = "native"
    device = "cpu"

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        cache: CacheSize,
        *,
        quantize: str,
        exact: bool,
        kv_cache: Literal["f16", "q8"] = "f16",
        threads: int,
        on_loading: OnLoading,
        progress: Progress | None = None,
        instruction_set: str = "auto",
    ) -> None:
        threads = threads or usable_processors()
        plan = plan_weights(spec, path, quantize=quantize)
        cache_format = "f32" if exact else kv_cache
        shape = _kernels.ModelShape(
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            epsilon=spec.rms_norm_eps,
            activation=spec.activation,
            attention_scale=spec.attention_scale,
            embedding_scale=spec.embedding_scale,
            residual_scale=spec.residual_scale,
            logit_scale=spec.logit_scale,
            query_growth=spec.query_growth,
            query_length=spec.query_length,
        )
        self.vocab_size = spec.vocab_size
        self.hidden_size = spec.hidden_size
        self.has_head = plan.has_head
        windows = [layer.window for layer in spec.layers]
        self.window = max(windows) if all(windows) else 0
        block_bytes = shape.block_bytes(num_layers=len(spec.layers), block_size=cache.block_size, kv_cache=cache_format)
        self.num_blocks, self.max_model_len = fit(
            cache,
            block_bytes=block_bytes,
            limit=spec.position_limit,
            path=path,
            weight_bytes=plan.packed_bytes,
            available=available_memory(),
        )
        self.pool = _kernels.ThreadPool(threads)
        try:
            weights = _kernels.Weights(
                shape,
                layers=[(layer.window, layer.rope) for layer in spec.layers],
                rotaries=[(rope.inverse_frequencies.tolist(), rope.attention_factor) for rope in spec.ropes],
                matrices={
                    name: (m.format, m.rows, m.cols, m.source, m.source_type, m.row_order)
                    for name, m in plan.matrices.items()
                },
                vectors=plan.vectors,
            )
            pack(weights, plan, self.pool, on_loading=on_loading, progress=progress)
            self._model = _kernels.Model(
                weights,
                exact=exact,
                kv_cache=cache_format,
                num_blocks=self.num_blocks,
                block_size=cache.block_size,
                instruction_set=instruction_set,
                pool=self.pool,
                progress=progress,
            )
        except MemoryError as error:
            raise ConfigError(
                f"There is not enough memory for the model in {path}: the system refuses to reserve it. Give less with "
                "--kv-cache-mib, or serve a smaller model."
            ) from error
        self.dtype = _describe(plan, exact=exact) + (", q8 KV cache" if cache_format == "q8" else "")
        self.kernels = self.instruction_set = self._model.instruction_set
        on_loading("ready", 1, 1, len(spec.layers), len(spec.layers))

    def execute(self, batch: InputBatch) -> StepOutput:
        rows, states = None, None
        if len(batch.hidden_rows):
            rows, states = batch.hidden_rows, np.empty((len(batch.hidden_rows), self.hidden_size), np.float32)
        logits = self._model.execute(
            batch.token_ids,
            batch.positions,
            batch.slot_mapping,
            batch.query_start,
            batch.context_lens,
            batch.block_tables,
            batch.logits_rows,
            rows,
            states,
        )
        return StepOutput(logits, states)

    def profile(self) -> dict[str, float]:
        """Seconds since the start: of threads on "linear", "head", "attention" and "other"; "steps" by the clock."""
        return self._model.profile()


def _describe(plan: WeightPlan, *, exact: bool) -> str:
    """The format that most weights are in, and what is computed with."""
    sizes: Counter[int] = Counter()
    for matrix in plan.matrices.values():
        sizes[matrix.format] += matrix.rows * matrix.cols
    most = FORMAT_NAMES[sizes.most_common(1)[0][0]]
    return f"{most} weights, {'int8' if most.startswith('q') and not exact else 'float32'} activations"
