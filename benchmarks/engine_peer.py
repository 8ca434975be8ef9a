"""A contender of `bench_engine.py` and `bench_quality.py`, which runs in a virtual environment of its own.

    build/peers/llama-cpp-avx2/bin/python engine_peer.py FILE.gguf THREADS

Started by `peer_process.py`, not by hand. Reads one JSON object per line from stdin, runs its "command", and writes one
to stdout; between commands it sleeps in read(2). Which engine it is, its environment decides: the first one of
`_ENGINES` whose library is installed there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

_ENGINES = {
    "llama_cpp": "llama_cpp_peer",
    "ik_llama_cpp": "ik_llama_cpp_peer",
    "openvino_genai": "openvino_peer",
}
"""The library, and the module here that drives it: it has `load(gguf, threads)`, which gives a `Peer`."""


class Peer(Protocol):
    """The commands. Times are in ms, of the engine alone, with its logits or its tokens at hand."""

    def hello(self) -> dict[str, Any]:
        """Its "version", and what else says how it was built and what it uses."""
        ...

    def hold(self, prompts: list[list[int]], num_tokens: int) -> dict[str, Any]:
        """Compute the prompts of sequences 0, 1 ... and keep them, with room for `num_tokens` tokens of each."""
        ...

    def decode(self, batch: int, steps: int) -> dict[str, Any]:
        """Go on with the first `batch` prompts, greedily: one step for warmth, then `steps`, each one's "ms"."""
        ...

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Compute a prompt that nothing is known of, up to its next token; the "ms" it took."""
        ...

    def logits(self, token_ids: list[int], chunks: list[int], file: str) -> dict[str, Any]:
        """Write every token's logits, computed in chunks of these sizes: .npy, float32 [tokens, vocabulary]."""
        ...


def load(gguf: str, threads: int) -> Peer:
    """The engine of this environment, with the model.

    Raises:
        SystemExit: there is none.
    """
    for library, module in _ENGINES.items():
        if importlib.util.find_spec(library):
            peer: Peer = importlib.import_module(module).load(gguf, threads)
            return peer
    raise SystemExit(f"None of {', '.join(_ENGINES)} is installed for {sys.executable}.")


def main() -> None:
    """Answer commands until stdin ends."""
    peer = load(sys.argv[1], int(sys.argv[2]))
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "hello": peer.hello,
        "hold": peer.hold,
        "decode": peer.decode,
        "prefill": peer.prefill,
        "logits": peer.logits,
    }
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("command")](**arguments)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
