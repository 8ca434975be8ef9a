"""Whether greedy text is llama.cpp's, for the same GGUF file: 20 prompts, and each difference with its margin.

    python benchmarks/bench_greedy.py --model FILE.gguf --vs build/peers/llama-cpp-avx2/bin/python

rbee computes `--tokens` greedy tokens behind each prompt. llama.cpp then computes its logits for the same tokens, and
where its most likely token is another one, that is a difference: greedy text would be the same up to the first. Both
round activations to 8 bits, each in its own way, so that near ties flip. The margin is how much likelier the one token
is than the other, in nats, by rbee and by llama.cpp; `scale` is the mean distance of the first from the second most
likely token over all positions, in llama.cpp.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engine_rig import add_gguf_option, add_model_options, gguf_for_peers, load_runner, logits_of, model_folder
from engine_rig import num_threads as threads_of
from peer_process import PeerProcess, add_peer_option
from program import argument_parser, finish, progress
from saving import table

from rbee.server.text.tokenizer import TextCodec

if TYPE_CHECKING:
    from rbee.engine.runners.interface import ModelRunner

_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "The quick brown fox",
    "Water boils at a temperature of",
    "In 1969, the first human",
    "import numpy as np\n\n",
    "Dear Sir or Madam,\n\n",
    "Ingredients:\n- 2 eggs\n- 100 g flour\n",
    "La capitale de l'Italie est",
    "Die Hauptstadt von Deutschland ist",
    "1, 1, 2, 3, 5, 8, 13,",
    "Q: What is photosynthesis?\nA:",
    "SELECT name FROM users WHERE",
    "The three laws of motion are:\n1.",
    "He opened the door and saw",
    "Breaking news: scientists have discovered",
    "To be, or not to be, that is",
    "<html>\n<head>\n",
    "My favourite season is autumn because",
)


def greedy(runner: ModelRunner, prompt: list[int], tokens: int) -> list[int]:
    """The prompt and its continuation; recomputed from the start for each token, as nothing is kept between calls."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(logits_of(runner, ids, [len(ids)])[-1].argmax()))
    return ids


def main() -> None:
    """Compare all prompts."""
    parser = argument_parser(__doc__, "greedy.{json,md}")
    add_model_options(parser)
    add_gguf_option(parser)
    add_peer_option(parser)
    parser.add_argument("--tokens", type=int, default=24, help="behind each prompt (default %(default)s)")
    options = parser.parse_args()
    folder = model_folder(options.model)
    codec = TextCodec.load(folder)
    runner = load_runner(folder, options)
    peer = PeerProcess(options.vs[0], gguf_for_peers(folder, options), threads=threads_of(options))
    rows: list[dict[str, Any]] = []
    gaps: list[float] = []
    positions = equal_texts = 0
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.npy"
        for text in _PROMPTS:
            prompt = codec.encode(text, add_special_tokens=True)
            ids = greedy(runner, prompt, options.tokens)
            ours = logits_of(runner, ids, [len(ids)])
            peer.ask("logits", token_ids=ids, chunks=[len(ids)], file=str(file))
            theirs = np.load(file)
            different = 0
            for at in range(len(prompt) - 1, len(ids) - 1):
                mine, other = ids[at + 1], int(theirs[at].argmax())
                gaps.append(float(np.diff(np.partition(theirs[at], -2)[-2:])[0]))
                if mine != other:
                    different += 1
                    margins = {
                        "rbee": round(float(ours[at][mine] - ours[at][other]), 4),
                        "llama.cpp": round(float(theirs[at][other] - theirs[at][mine]), 4),
                    }
                    rows.append({"prompt": text, "token": at + 2 - len(prompt), **margins})
            positions += options.tokens
            equal_texts += not different
            progress(
                f"{text!r}: {codec.decode(ids[len(prompt) :])!r}" + (f" ({different} differ)" if different else "")
            )
    peer.close()
    scale = float(np.mean(gaps))
    report = f"{equal_texts} of {len(_PROMPTS)} texts are equal, {positions - len(rows)} of {positions} tokens; scale "
    report += f"{scale:.2f}\n\n"
    report += table(
        ["prompt", "token", "rbee", "llama.cpp"],
        [[repr(row["prompt"]), *map(str, list(row.values())[1:])] for row in rows],
    )
    result = {"benchmark": "greedy", "texts": len(_PROMPTS), "equal_texts": equal_texts, "tokens": positions}
    finish(options, "greedy", "Greedy text beside llama.cpp", report, result | {"scale": scale, "differences": rows})


if __name__ == "__main__":
    main()
