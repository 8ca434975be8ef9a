"""What `llama_cpp_peer.py` and `ik_llama_cpp_peer.py` have in common: the commands on top of llama.h.

What is timed is llama_decode with the logits at hand, and nothing of Python's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_BATCH = 2048  # tokens of one llama_decode


class Context(Protocol):
    """A llama_context."""

    @property
    def num_tokens(self) -> int:
        """Of each sequence."""

    def close(self) -> None:
        """Free it."""
        ...

    def forget(self, sequence: int, first: int) -> None:
        """Drop a sequence's tokens from position `first` on."""
        ...

    def compute(self, batch: Any) -> None:
        """llama_decode, up to having all logits."""
        ...

    def logits(self, num_logits: int) -> NDArray[np.float32]:
        """Those of the last `compute`, [num_logits, vocabulary]; valid until the next."""
        ...


class Library(Protocol):
    """One of the two libraries, with the model."""

    facts: dict[str, Any]
    batch: Any  # a llama_batch for LARGEST_BATCH tokens of one sequence each

    def context(self, num_sequences: int, num_tokens: int) -> Context:
        """One for so many sequences of so many tokens each."""
        ...


class LlamaPeer:
    """See `engine_peer.Peer`."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._prompts: list[list[int]] = []
        self._num_tokens = 0  # of each sequence that decodes
        self._streams: dict[int, tuple[Context, list[int]]] = {}  # by number of sequences; and each one's next token
        self._single: Context | None = None

    def hello(self) -> dict[str, Any]:
        """Versions, build and threads of this peer."""
        return self._library.facts

    def hold(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """They are computed when so many sequences first decode: they have a context of their own.

        In ik_llama.cpp a sequence would look past the keys of all others in its context, also of those that rest.
        """
        self._prompts, self._num_tokens = prompts, -(-num_tokens // 256) * 256
        return {}

    def decode(self, batch: int, steps: int) -> dict[str, Any]:
        """One llama_decode of `batch` tokens for each step."""
        if batch not in self._streams:
            self._streams[batch] = self._begin(batch)
        context, token_ids = self._streams[batch]
        for sequence in range(batch):
            context.forget(sequence, len(self._prompts[sequence]))
        ms = []
        for step in range(steps + 1):
            rows = [(token, len(self._prompts[seq]) + step, seq) for seq, token in enumerate(token_ids)]
            ms.append(1e3 * self._compute(context, rows, batch))
            token_ids = context.logits(batch).argmax(axis=1).tolist()
        return {"ms": ms[1:]}

    def _begin(self, batch: int) -> tuple[Context, list[int]]:
        """A context with the first prompts in sequences 0, 1 ..., and the token that follows each."""
        assert self._prompts, "hold comes first"
        context, first = self._library.context(batch, self._num_tokens), []
        for sequence, prompt in enumerate(self._prompts[:batch]):
            self._compute(context, [(token, position, sequence) for position, token in enumerate(prompt)], 1)
            first.append(int(context.logits(1)[0].argmax()))
        return context, first

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """One llama_decode."""
        context = self._alone(len(prompt))
        return {"ms": 1e3 * self._compute(context, [(token, position, 0) for position, token in enumerate(prompt)], 1)}

    def logits(self, token_ids: list[int], chunks: list[int], file: str) -> dict[str, Any]:
        """One llama_decode for each chunk."""
        context = self._alone(len(token_ids))
        rows, start = [], 0
        for size in chunks:
            chunk = [(token_ids[position], position, 0) for position in range(start, start + size)]
            self._compute(context, chunk, size)
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
            self._single = self._library.context(1, -(-num_tokens // 256) * 256)
        self._single.forget(0, 0)
        return self._single

    def _compute(self, context: Context, tokens: list[tuple[int, int, int]], num_logits: int) -> float:
        """The seconds for (token, position, sequence) of each, with logits of the last ones."""
        assert len(tokens) <= LARGEST_BATCH, f"{len(tokens)} tokens are more than a batch holds"
        batch = self._library.batch
        batch.n_tokens = len(tokens)
        for row, (token, position, sequence) in enumerate(tokens):
            batch.token[row], batch.pos[row] = token, position
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.logits[row] = row >= len(tokens) - num_logits
        started = time.perf_counter()
        context.compute(batch)
        return time.perf_counter() - started
