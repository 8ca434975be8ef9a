"""ik_llama.cpp behind `engine_peer.py`, through the C library of ik-llama-cpp-python's wheel, which is built for AVX2.

Its quickest configuration: weights are repacked at load (which needs them read instead of mapped), queries, keys and
values are one product, and with flash attention: tried with and without (Zen 4, 135M), one stream took the same time,
4 and 8 streams and prefill 0.6 to 0.8 of it. The sequences share one KV cache in fp16, because there is no other kind,
so that each looks past the keys of the others.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import ik_llama_cpp._ctypes_api as llama  # type: ignore[import-not-found] # it is in the peer's environment only
import numpy as np
from llama_peer import LARGEST_BATCH, LlamaPeer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ERROR = 4  # a log level
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _functions(library: Any) -> Any:
    """The library, with the kinds of those functions that its binding leaves out."""
    library.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
    library.llama_kv_cache_seq_rm.restype = ctypes.c_bool
    library.llama_get_logits.argtypes = [ctypes.c_void_p]
    library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_synchronize.argtypes = [ctypes.c_void_p]
    library.llama_synchronize.restype = None
    library.llama_print_system_info.restype = ctypes.c_char_p
    library.llama_log_set.argtypes = [_LOG, ctypes.c_void_p]
    library.llama_log_set.restype = None
    return library


_library = _functions(llama._lib)  # noqa: SLF001 - the binding keeps it so


def _show_errors(level: int, text: bytes, _data: Any) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class _Context:
    """See `llama_peer.Context`."""

    def __init__(self, model: Any, *, threads: int, num_sequences: int, num_tokens: int) -> None:
        params = llama.llama_context_default_params()
        params.n_seq_max = num_sequences
        params.n_ctx = num_sequences * num_tokens
        params.n_batch = LARGEST_BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn = True
        self.num_tokens = num_tokens
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._context = llama.llama_init_from_model(model, params)
        assert self._context, "ik_llama.cpp made no context"

    def close(self) -> None:
        llama.llama_free(self._context)

    def forget(self, sequence: int, first: int) -> None:
        assert _library.llama_kv_cache_seq_rm(self._context, sequence, first, -1)

    def compute(self, batch: Any) -> None:
        status = llama.llama_decode(self._context, batch)
        _library.llama_synchronize(self._context)
        logits = _library.llama_get_logits(self._context)
        assert status == 0, f"llama_decode: {status}"
        assert logits, "ik_llama.cpp gave no logits"

    def logits(self, num_logits: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(_library.llama_get_logits(self._context), (num_logits, self._vocab_size))


class _Library:
    """See `llama_peer.Library`."""

    def __init__(self, gguf: str, threads: int) -> None:
        self._log = _LOG(_show_errors)  # the library does not keep it
        _library.llama_log_set(self._log, None)
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.use_mmap = False
        params.repack_tensors = params.merge_qkv = True
        self._model = llama.llama_model_load_from_file(gguf.encode(), params)
        assert self._model, f"ik_llama.cpp cannot load {gguf}"
        self._threads = threads
        self.batch = llama.llama_batch_init(LARGEST_BATCH, 0, 1)
        self.facts = {
            "version": version("ik_llama_cpp_python"),
            "system": _library.llama_print_system_info().decode().strip(),
            "threads": threads,
        }

    def context(self, num_sequences: int, num_tokens: int) -> _Context:
        return _Context(self._model, threads=self._threads, num_sequences=num_sequences, num_tokens=num_tokens)


def load(gguf: str, threads: int) -> LlamaPeer:
    """ik_llama.cpp with this model."""
    return LlamaPeer(_Library(gguf, threads))
