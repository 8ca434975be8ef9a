"""Make a GGUF file of a real model's shape with random weights, for measuring starts and steps of large files.

    python benchmarks/make_random_gguf.py 1.1b FILE.gguf
    python benchmarks/make_random_gguf.py 3b FILE.gguf --type Q6_K

The shapes of Qwen 2.5 0.5B, TinyLlama 1.1B, Llama 3.2 3B and Llama 3.1 8B, as Llamas, with the default model's
tokenizer, filled up with unused tokens. Weights are of about 1 / sqrt(columns), so that logits are finite; the text is
nonsense. The same bytes on every machine (fixed seed).

Without --type the types are those that llama-quantize gives Q4_K_M, and their blocks are random: that takes seconds,
but needs columns that are multiples of 256, which 0.5b has not. With --type the weights are random 16-bit floats, and
llama-quantize makes any type that it knows of them, in minutes; the one that ik_llama.cpp's wheel has, unless
--quantizer names another.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from rbee.config import DEFAULT_MODEL
from rbee.models import ConsoleProgress, gguf_of, prepare
from rbee.models.gguf import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Shape(NamedTuple):
    """Of a Llama."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    context: int
    rope_base: float
    tied: bool = False  # the head is the embeddings


SHAPES = {
    "0.5b": Shape(24, 896, 14, 2, 4864, 151936, 32768, 1e6, tied=True),
    "1.1b": Shape(22, 2048, 32, 4, 5632, 49152, 2048, 1e4),
    "3b": Shape(28, 3072, 24, 8, 8192, 128256, 131072, 5e5, tied=True),
    "8b": Shape(32, 4096, 32, 8, 14336, 128256, 131072, 5e5),
}
_QUANTIZERS = "build/peers/ik-llama-cpp/lib/python3*/site-packages/ik_llama_cpp/bin/llama-quantize"
_ROOT = Path(__file__).parents[1]
# Where the types' binary16 factors are, and the root mean square of what they multiply, quants and scales together.
_FACTORS = {Type.Q4_K: ((0, 2), 180.0), Type.Q6_K: ((208,), 1400.0)}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, int], Type]]:
    """Name, rows and columns, and type in a Q4_K_M of each matrix, in llama.cpp's order."""
    hidden, narrow = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield "token_embd.weight", (shape.vocabulary, hidden), Type.Q6_K if shape.tied else Type.Q4_K
    if not shape.tied:
        yield "output.weight", (shape.vocabulary, hidden), Type.Q6_K
    for layer in range(shape.layers):
        eighth = shape.layers // 8
        more = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2  # llama-quant.cpp, use_more_bits
        for name, size, kind in (
            ("attn_q", (hidden, hidden), Type.Q4_K),
            ("attn_k", (narrow, hidden), Type.Q4_K),
            ("attn_v", (narrow, hidden), Type.Q6_K if more else Type.Q4_K),
            ("attn_output", (hidden, hidden), Type.Q4_K),
            ("ffn_gate", (shape.intermediate, hidden), Type.Q4_K),
            ("ffn_up", (shape.intermediate, hidden), Type.Q4_K),
            ("ffn_down", (hidden, shape.intermediate), Type.Q6_K if more else Type.Q4_K),
        ):
            yield f"blk.{layer}.{name}.weight", size, kind


def blocks(rows: int, cols: int, kind: Type, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random blocks [rows, bytes of a row]; rows repeat after 1,024."""
    some = min(rows, 1024)
    if kind is Type.F16:
        weights = rng.normal(0, 1 / math.sqrt(cols), (some, cols)).astype(np.float16)
        return np.resize(weights.view(np.uint8), (rows, cols * 2))
    block_cols, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (some * cols // block_cols, block_bytes), dtype=np.uint8)
    at, size = _FACTORS[kind]
    for offset in at:
        factor = np.float16(1 / (size * math.sqrt(cols)))
        data[:, offset : offset + 2] = np.frombuffer(factor.tobytes(), np.uint8)
    return np.resize(data.reshape(some, -1), (rows, cols // block_cols * block_bytes))


def make(shape: Shape, path: Path, kind: Type | None = None) -> None:
    """Write the file, with all matrices of this type, or in those of a Q4_K_M."""
    with ConsoleProgress() as progress:
        default = gguf_of(prepare(DEFAULT_MODEL, progress=progress).path)
    assert default is not None
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_context_length(shape.context)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    _add_tokenizer(writer, default, shape.vocabulary)
    norms = ["output_norm", *(f"blk.{n}.{part}_norm" for n in range(shape.layers) for part in ("attn", "ffn"))]
    for name in norms:
        writer.add_tensor_info(f"{name}.weight", (shape.hidden,), np.dtype(np.float32), shape.hidden * 4)
    matrices = [(name, size, kind or usual) for name, size, usual in tensors(shape)]
    for name, (rows, cols), type_ in matrices:
        block_cols, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        row_bytes = cols // block_cols * block_bytes
        writer.add_tensor_info(name, (rows, row_bytes), np.dtype(np.uint8), rows * row_bytes, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.hidden, np.float32))
    for _, (rows, cols), type_ in matrices:
        writer.write_tensor_data(blocks(rows, cols, type_, rng))
    writer.close()


def make_quantized(shape: Shape, path: Path, kind: str, quantizer: Path) -> None:
    """Write the file in a type that the quantizer knows; beside it the floats lie meanwhile."""
    floats = path.with_name(f"{path.name}.floats")
    try:
        make(shape, floats, Type.F16)
        threads = str(len(os.sched_getaffinity(0)))
        subprocess.run([quantizer, floats, path, kind, threads], check=True, stdout=subprocess.DEVNULL)
    finally:
        floats.unlink(missing_ok=True)


def _add_tokenizer(writer: gguf.GGUFWriter, default: Path, size: int) -> None:
    metadata = read_header(default).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(tokens + [f"<|unused_{n}|>" for n in range(size - len(tokens))])
    writer.add_token_types(types + [int(gguf.TokenType.UNUSED)] * (size - len(types)))
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_chat_template(metadata["tokenizer.chat_template"])


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path)
    parser.add_argument("--type", help="of llama-quantize, such as Q5_K_M (default: Q4_K_M of random blocks)")
    parser.add_argument("--quantizer", type=Path, help="llama-quantize (default: of `make bench-engine-peers`)")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.type is None:
        if shape.hidden % 256:
            raise SystemExit(f"{options.shape} has rows of {shape.hidden} columns: give --type.")
        make(shape, options.path)
        return
    quantizer = options.quantizer or next(_ROOT.glob(_QUANTIZERS), None)
    if quantizer is None:
        raise SystemExit("There is no llama-quantize: `make bench-engine-peers` fetches one, or give --quantizer.")
    make_quantized(shape, options.path, options.type, quantizer)


if __name__ == "__main__":
    main()
