"""What the kernels' arithmetic does to a model: its logits beside those of the same weights computed in fp32.

    make bench-quality ARGS=--save

The text comes from this repository, in windows of `--tokens` tokens that each follow a beginning-of-sequence token. At
every position the logits for the next token are compared, given the true tokens before it. The reference is
transformers in fp32 on what the GGUF file's quants stand for. The contenders are our runner by default, with a KV cache
in 8 bits, and with --exact, and the peers on the GGUF file. Every second window is computed token by token, as in
decoding; the others in chunks of 64, as prompts are.

  KL     of the reference's distribution to the contender's, in nats: the mean over the tokens with its standard error,
         because single tokens weigh much in it; and the worst token
  top-1  how often the contender's most likely token is the reference's

The text changes with the repository: compare within a run.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from engine_rig import (
    add_gguf_option,
    add_model_options,
    float_folder,
    gguf_for_peers,
    label,
    load_runner,
    logits_of,
    model_folder,
    num_threads,
    variant,
)
from peer_process import PeerProcess, add_peer_option
from program import argument_parser, finish, progress
from saving import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_ROOT = Path(__file__).parents[1]
_TEXTS = (  # prose of several kinds, a legal text and code
    "README.md", "docs/transport.md", "CHANGELOG.md", "LICENSE", "rbee/engine/scheduling/scheduler.py", "rbee/config.py"
)  # fmt: skip
_CHUNK = 64
_MAX_KL = 0.006
_MIN_TOP1 = 0.95


class Window:
    """A piece of text as tokens, how it is computed, and the reference for it once that is known."""

    def __init__(self, text: str, token_ids: list[int], chunk: int) -> None:
        self.text = text
        self.token_ids = token_ids
        whole, rest = divmod(len(token_ids), chunk)
        self.chunks = [chunk] * whole + [rest] * (rest > 0)
        self.log_p: NDArray[np.float64] = np.empty(0)


def windows(folder: Path, texts: list[Path], tokens: int) -> list[Window]:
    """The beginning of each text."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - `--help` stays instant

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = json.loads((folder / "config.json").read_text()).get("bos_token_id")
    found = []
    for number, text in enumerate(texts):
        ids = tokenizer.encode(text.read_text(), add_special_tokens=False).ids
        ids = ([] if first is None else [first]) + ids
        if len(ids) < tokens:
            raise SystemExit(f"{text} has only {len(ids)} of the {tokens} tokens of a window: give a smaller --tokens.")
        found.append(Window(_shown(text), ids[:tokens], 1 if number % 2 else _CHUNK))
    return found


def _shown(path: Path) -> str:
    return str(path.relative_to(_ROOT)) if path.is_relative_to(_ROOT) else path.name


def take_reference(folder: Path, pieces: list[Window]) -> None:
    """Fill in `log_p`."""
    import torch  # noqa: PLC0415 - takes seconds
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model: Any = AutoModelForCausalLM.from_pretrained(float_folder(folder), dtype=torch.float32)
    model.eval()
    with torch.inference_mode():
        for piece in pieces:
            logits = model(input_ids=torch.tensor([piece.token_ids])).logits[0]
            piece.log_p = log_softmax(logits.numpy())


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def judge(piece: Window, logits: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """By token: KL(reference || these logits), and whether the most likely token is the same."""
    log_q = log_softmax(logits)
    divergence: NDArray[np.float64] = (np.exp(piece.log_p) * (piece.log_p - log_q)).sum(axis=1)
    return divergence, piece.log_p.argmax(axis=1) == log_q.argmax(axis=1)


def contenders(
    folder: Path, options: argparse.Namespace, pieces: list[Window]
) -> Iterator[tuple[str, str, list[NDArray[np.float32]]]]:
    """Name, what it is, and its logits for each window; one after the other, each gone before the next comes."""
    ways = {"": (False, "auto"), " --kv-cache-dtype q8": (False, "q8"), " --exact": (True, "auto")}
    for chosen, (exact, kv_cache) in ways.items():
        if options.exact and not exact:
            continue
        how = argparse.Namespace(**{**vars(options), "exact": exact, "kv_cache_dtype": kv_cache})
        runner = load_runner(folder, how)
        name = f"rbee {runner.name}{chosen}"
        progress(f"computing with {name}")
        yield name, label(runner, how), [logits_of(runner, piece.token_ids, piece.chunks) for piece in pieces]
        is_native = runner.name == "native"
        del runner
        gc.collect()
        if not is_native:
            break  # it is exact as it comes
    if not options.vs:
        return
    gguf = gguf_for_peers(folder, options)
    for python in options.vs:
        peer = PeerProcess(python, gguf, threads=num_threads(options))
        progress(f"computing with {peer.name}")
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "logits.npy"
            logits = []
            for piece in pieces:
                peer.ask("logits", token_ids=piece.token_ids, chunks=piece.chunks, file=str(file))
                logits.append(np.load(file))
        yield peer.name, f"{peer.facts['version']}; {peer.facts['system']}", logits
        peer.close()


def main() -> None:
    """Compute all, one after the other, and report."""
    parser = argument_parser(__doc__, "quality*.{json,md}")
    add_model_options(parser)
    add_gguf_option(parser)
    add_peer_option(parser)
    parser.add_argument("--text", type=Path, nargs="+", help=f"the texts (default: {', '.join(_TEXTS)})")
    parser.add_argument("--tokens", type=int, default=350, help="tokens of each window (default %(default)s)")
    options = parser.parse_args()
    folder = model_folder(options.model)
    pieces = windows(folder, options.text or [_ROOT / text for text in _TEXTS], options.tokens)
    progress("computing the reference")
    take_reference(folder, pieces)

    figures: list[dict[str, Any]] = []
    for name, details, logits in contenders(folder, options, pieces):
        judged = [judge(piece, of_piece) for piece, of_piece in zip(pieces, logits, strict=True)]
        divergence = np.concatenate([each for each, _ in judged])
        figures.append(
            {
                "name": name,
                "details": details,
                "tokens": len(divergence),
                "kl_mean": float(divergence.mean()),
                "kl_error": float(divergence.std() / len(divergence) ** 0.5),
                "kl_p99": float(np.quantile(divergence, 0.99)),
                "kl_max": float(divergence.max()),
                "top1": float(np.concatenate([same for _, same in judged]).mean()),
                "windows": [
                    {
                        "text": piece.text,
                        "chunk": piece.chunks[0],
                        "kl_mean": float(kl.mean()),
                        "top1": float(same.mean()),
                    }
                    for piece, (kl, same) in zip(pieces, judged, strict=True)
                ],
            }
        )

    result = {"benchmark": "quality", "contenders": figures}
    title = "Quality of the native runner's arithmetic"
    finish(options, f"quality{variant(options)}", title, _report(figures, pieces), result)


def _report(figures: list[dict[str, Any]], pieces: list[Window]) -> str:
    """A table of the contenders and one of the windows, and the targets."""
    rows = [
        [
            figure["name"],
            *(f"{figure[key]:.2g}" for key in ("kl_mean", "kl_error", "kl_p99", "kl_max")),
            _percent(figure["top1"]),
        ]
        for figure in figures
    ]
    by_window = []
    for number, piece in enumerate(pieces):
        judged = [figure["windows"][number] for figure in figures]
        how = "token by token" if piece.chunks[0] == 1 else f"chunks of {piece.chunks[0]}"
        by_window.append([piece.text, how, *(f"{each['kl_mean']:.2g}, {_percent(each['top1'])}" for each in judged)])
    text = (
        f"{figures[0]['tokens']:,} tokens; the reference is transformers in fp32 on the dequantized weights.\n\n"
        f"{table(['', 'KL, mean', 'its error', 'p99', 'worst', 'top-1'], rows)}\n\nMean KL and top-1 by window:\n\n"
        f"{table(['text', 'computed', *(figure['name'] for figure in figures)], by_window)}"
    )
    ours, *_ = figures
    checks = [
        ("mean KL", f"{ours['kl_mean']:.2g}", f"at most {_MAX_KL}", ours["kl_mean"] <= _MAX_KL),
        ("top-1", _percent(ours["top1"]), f"at least {_percent(_MIN_TOP1)}", ours["top1"] >= _MIN_TOP1),
    ]
    checks += [
        ("mean KL", f"{ours['kl_mean']:.2g}", f"at most that of {peer['name']}", ours["kl_mean"] <= peer["kl_mean"])
        for peer in figures
        if not peer["name"].startswith("rbee")
    ]
    for what, value, target, met in checks:
        text += f"\n\n{ours['name']}, {what}: {value} (target: {target}): {'met' if met else 'MISSED'}."
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


if __name__ == "__main__":
    main()
