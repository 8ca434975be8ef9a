"""llama.cpp as a contender of `bench_engine.py` and `bench_quality.py`: runs in a virtual environment of its own.

    build/peers/llama-cpp-avx2/bin/python llama_cpp_peer.py FILE.gguf THREADS

Started by `llama_cpp_process.py`, not by hand. Reads one JSON object per line from stdin, runs its "command",
and writes one to stdout; between commands it sleeps in read(2). It calls llama.cpp's C interface, with
its defaults except for the number of threads and sequences: fp16 KV cache, flash attention where it helps, up to 512
tokens per micro-batch, and a KV cache of its own for each sequence. What is timed is llama_decode with the logits at
hand, and nothing of Python's.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import llama_cpp as llama  # type: ignore[import-not-found] # it is in the peer's environment only
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_LARGEST_BATCH = 2048
_ERROR = 4


class Context:
    """A llama.cpp context for `num_sequences` sequences of `num_tokens` tokens each."""

    def __init__(self, model: Any, *, threads: int, num_sequences: int, num_tokens: int) -> None:
        params = llama.llama_context_default_params()
        params.n_seq_max = num_sequences
        params.n_ctx = num_sequences * num_tokens
        params.n_batch = _LARGEST_BATCH
        params.n_outputs_max = _LARGEST_BATCH
        params.n_outputs_max_per_seq = _LARGEST_BATCH
        params.n_threads = params.n_threads_batch = threads
        self.num_tokens = num_tokens
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._context = llama.llama_init_from_model(model, params)
        assert self._context, "llama.cpp made no context"
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(_LARGEST_BATCH, 0, 1)

    def close(self) -> None:
        """Free it."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)

    def forget(self, sequence: int, first: int) -> None:
        """Drop a sequence's tokens from position `first` on."""
        assert llama.llama_memory_seq_rm(self._memory, sequence, first, -1)

    def decode(self, tokens: list[tuple[int, int, int]], num_logits: int) -> float:
        """Compute (token, position, sequence) for each of `tokens`, logits for the last ones; the seconds it took."""
        assert len(tokens) <= _LARGEST_BATCH, f"{len(tokens)} tokens are more than a batch holds"
        batch = self._batch
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = row >= len(tokens) - num_logits
        started = time.perf_counter()
        status = llama.llama_decode(self._context, batch)
        llama.llama_synchronize(self._context)
        logits = llama.llama_get_logits(self._context)
        seconds = time.perf_counter() - started
        assert status == 0, f"llama_decode: {status}"
        assert logits, "llama.cpp gave no logits"
        return seconds

    def logits(self, num_logits: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Those of the last `decode`, [num_logits, vocabulary]; valid until the next."""
        pointer = llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (num_logits, self._vocab_size))


class Peer:
    """The commands."""

    def __init__(self, gguf: str, threads: int) -> None:
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
        assert self._model, f"llama.cpp cannot load {gguf}"
        self._threads = threads
        self._streams: Context | None = None
        self._single: Context | None = None
        self._prompts: list[list[int]] = []
        self._first: list[int] = []  # each prompt's next token

    def hello(self) -> dict[str, Any]:
        """Versions, build and threads of this peer."""
        system = llama.llama_print_system_info().decode().strip()
        return {"version": version("llama_cpp_python"), "system": system, "threads": self._threads}

    def hold(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """Compute the prompts of sequences 0, 1 ... and keep them, with room for `num_tokens` tokens of each."""
        self._streams = Context(
            self._model, threads=self._threads, num_sequences=len(prompts), num_tokens=-(-num_tokens // 256) * 256
        )
        self._prompts, self._first = prompts, []
        for sequence, prompt in enumerate(prompts):
            self._streams.decode([(token, position, sequence) for position, token in enumerate(prompt)], 1)
            self._first.append(int(self._streams.logits(1)[0].argmax()))
        return {}

    def decode(self, batch: int, steps: int) -> dict[str, Any]:
        """Go on with the first `batch` prompts, greedily: one step for warmth, then `steps` that are timed, in ms."""
        assert self._streams is not None, "hold comes first"
        for sequence in range(batch):
            self._streams.forget(sequence, len(self._prompts[sequence]))
        token_ids = self._first[:batch]
        ms = []
        for step in range(steps + 1):
            rows = [(token, len(self._prompts[seq]) + step, seq) for seq, token in enumerate(token_ids)]
            ms.append(1e3 * self._streams.decode(rows, batch))
            token_ids = self._streams.logits(batch).argmax(axis=1).tolist()
        return {"ms": ms[1:]}

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Compute a prompt that nothing is known of, up to its last token's logits; the ms it took."""
        context = self._alone(len(prompt))
        return {"ms": 1e3 * context.decode([(token, position, 0) for position, token in enumerate(prompt)], 1)}

    def logits(self, token_ids: list[int], chunks: list[int], file: str) -> dict[str, Any]:
        """Write every token's logits, computed in chunks of these sizes: .npy, float32 [tokens, vocabulary]."""
        context = self._alone(len(token_ids))
        rows, start = [], 0
        for size in chunks:
            chunk = [(token_ids[position], position, 0) for position in range(start, start + size)]
            context.decode(chunk, size)
            rows.append(context.logits(size).copy())
            start += size
        np.save(file, np.concatenate(rows))
        return {}

    def _alone(self, num_tokens: int) -> Context:
        """An empty context with room for one sequence of so many tokens."""
        if self._single is not None and self._single.num_tokens < num_tokens:
            self._single.close()
            self._single = None
        if self._single is None:
            self._single = Context(
                self._model, threads=self._threads, num_sequences=1, num_tokens=-(-num_tokens // 256) * 256
            )
        self._single.forget(0, 0)
        return self._single


def main() -> None:
    """Answer commands until stdin ends."""

    @llama.llama_log_callback  # type: ignore[untyped-decorator] # of llama-cpp-python
    def log(level: int, text: bytes, _data: Any) -> None:
        if level == _ERROR:  # 5 is more of what came before, dots mostly
            sys.stderr.write(text.decode(errors="replace"))

    llama.llama_log_set(log, None)
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "hello": peer.hello,
        "hold": peer.hold,
        "decode": peer.decode,
        "prefill": peer.prefill,
        "logits": peer.logits,
    }
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("command")](**arguments)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
