"""llama.cpp behind `engine_peer.py`, through llama-cpp-python's bindings.

Its defaults: a KV cache in fp16 and of its own for each sequence, flash attention where it helps, up to 512 tokens per
micro-batch.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import llama_cpp as llama  # type: ignore[import-not-found] # it is in the peer's environment only
import numpy as np
from llama_peer import LARGEST_BATCH, LlamaPeer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ERROR = 4  # a log level; 5 is more of what came before, dots mostly


class _Context:
    """See `llama_peer.Context`."""

    def __init__(self, model: Any, *, threads: int, num_sequences: int, num_tokens: int) -> None:
        params = llama.llama_context_default_params()
        params.n_seq_max = num_sequences
        params.n_ctx = num_sequences * num_tokens
        params.n_batch = LARGEST_BATCH
        params.n_outputs_max = LARGEST_BATCH
        params.n_outputs_max_per_seq = LARGEST_BATCH
        params.n_threads = params.n_threads_batch = threads
        self.num_tokens = num_tokens
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._context = llama.llama_init_from_model(model, params)
        assert self._context, "llama.cpp made no context"
        self._memory = llama.llama_get_memory(self._context)

    def close(self) -> None:
        llama.llama_free(self._context)

    def forget(self, sequence: int, first: int) -> None:
        assert llama.llama_memory_seq_rm(self._memory, sequence, first, -1)

    def compute(self, batch: Any) -> None:
        status = llama.llama_decode(self._context, batch)
        llama.llama_synchronize(self._context)
        logits = llama.llama_get_logits(self._context)
        assert status == 0, f"llama_decode: {status}"
        assert logits, "llama.cpp gave no logits"

    def logits(self, num_logits: int) -> NDArray[np.float32]:
        pointer = llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (num_logits, self._vocab_size))


class _Library:
    """See `llama_peer.Library`."""

    def __init__(self, gguf: str, threads: int) -> None:
        @llama.llama_log_callback  # type: ignore[untyped-decorator] # of llama-cpp-python
        def log(level: int, text: bytes, _data: Any) -> None:
            if level == _ERROR:
                sys.stderr.write(text.decode(errors="replace"))

        self._log = log  # the library does not keep it
        llama.llama_log_set(log, None)
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
        assert self._model, f"llama.cpp cannot load {gguf}"
        self._threads = threads
        self.batch = llama.llama_batch_init(LARGEST_BATCH, 0, 1)
        self.facts = {
            "version": version("llama_cpp_python"),
            "system": llama.llama_print_system_info().decode().strip(),
            "threads": threads,
        }

    def context(self, num_sequences: int, num_tokens: int) -> _Context:
        return _Context(self._model, threads=self._threads, num_sequences=num_sequences, num_tokens=num_tokens)


def load(gguf: str, threads: int) -> LlamaPeer:
    """llama.cpp with this model."""
    return LlamaPeer(_Library(gguf, threads))
