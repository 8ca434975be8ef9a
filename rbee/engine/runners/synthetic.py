"""A model without weights: a step takes a chosen time, and each prompt has one known answer.

Owns the pace; `rbee.models.synthetic` owns the answer, so that clients and tests can foretell it. Latency benchmarks
and fault tests run on it through the same scheduler, sampler, rings and server as real models. Never loads torch.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine.runners.interface import StepOutput
from rbee.errors import ConfigError
from rbee.models import synthetic

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.runners.context_length import CacheSize
    from rbee.engine.runners.interface import OnProgress

KV_BYTES_PER_TOKEN = 1024
"""What a token is taken to cost of `kv_cache_mib`, so that pools can be small or large. Nothing is stored."""
_DEFAULT_MIB = 1024
_NEVER = -1e30  # a logit: no temperature or penalty that a request may have makes such a token likely


class SyntheticRunner:
    """A `ModelRunner` that computes nothing; ConfigError for a max_model_len above 8192 or the KV cache.

    Each step is due `step_seconds` after the one before it was; a late step does not shift those after it. After an
    idle
    time, or when the engine is behind by more than a step, the cadence starts anew. All work of a step is done before
    its wait, which never spins.
    """

    name = "synthetic"
    device = "cpu"
    dtype = "float32"
    kernels = "none"
    vocab_size = synthetic.VOCAB_SIZE
    hidden_size = synthetic.HIDDEN_SIZE
    has_head = True
    window = 0
    pool = None

    def __init__(
        self,
        cache: CacheSize,
        *,
        step_seconds: float,
        on_progress: OnProgress = lambda: None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        kv_cache_mib = cache.kv_cache_mib or _DEFAULT_MIB
        self.num_blocks = (kv_cache_mib << 20) // (KV_BYTES_PER_TOKEN * cache.block_size)
        cache_tokens = self.num_blocks * cache.block_size
        if cache.max_model_len > min(synthetic.MAX_MODEL_LEN, cache_tokens) or cache_tokens < 2:
            raise ConfigError(
                f"--max-model-len {cache.max_model_len} is too much for the synthetic model: it takes "
                f"{synthetic.MAX_MODEL_LEN} tokens, and --kv-cache-mib {kv_cache_mib} holds {cache_tokens}."
            )
        self.max_model_len = cache.max_model_len or min(synthetic.MAX_MODEL_LEN, cache_tokens)
        self._step_ns = round(step_seconds * 1e9)
        self._due_ns = 0
        self._on_progress = on_progress
        self._now_ns = now_ns
        self._sleep = sleep

    def execute(self, batch: InputBatch) -> StepOutput:
        """Wait for the step's end; each row is 0 at its one token (of a prompt: the next one) and very low elsewhere.

        The others come if a request excludes that token.
        """
        logits = np.full((len(batch.logits_rows), self.vocab_size), _NEVER, dtype=np.float32)
        for row, sequence in enumerate(batch.row_sequences[: batch.num_sampling]):
            prompt_hash = synthetic.prompt_hash(sequence.token_ids[: sequence.num_prompt_tokens])
            logits[row, synthetic.sequence_token(prompt_hash, sequence.num_output_tokens)] = 0
        targets = batch.positions[batch.logits_rows] + 1
        for row in range(batch.num_sampling, len(targets)):
            logits[row, batch.row_sequences[row].token_ids[targets[row]]] = 0
        hidden_states = _hidden_states(batch) if len(batch.hidden_rows) else None
        self._on_progress()
        self._wait()
        return StepOutput(logits, hidden_states)

    def _wait(self) -> None:
        now = self._now_ns()
        self._due_ns += self._step_ns
        if self._due_ns < now - self._step_ns:
            self._due_ns = now + self._step_ns
        if self._due_ns > now:
            self._sleep((self._due_ns - now) / 1e9)


def _hidden_states(batch: InputBatch) -> NDArray[np.float32]:
    """Of the tokens of each sequence, the hash goes on from one to the next."""
    states: list[list[float]] = []
    for sequence, rows in batch.pooling():
        known, prefix_hash = 0, 0
        for position in batch.positions[batch.hidden_rows[rows]].tolist():
            prefix_hash = zlib.crc32(sequence.token_ids[known : position + 1].tobytes(), prefix_hash)
            known = position + 1
            states.append(synthetic.hidden_state(prefix_hash))
    return np.array(states, np.float32)
