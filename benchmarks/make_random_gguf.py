"""Make a GGUF file of a real model's shape with random weights, for measuring starts and steps of large files.

    python benchmarks/make_random_gguf.py 1.1b FILE.gguf

The shapes of TinyLlama 1.1B and Llama 3.1 8B, in the types that llama-quantize gives Q4_K_M, with the default model's
tokenizer, filled up with unused tokens. Weights are of about 1 / sqrt(columns), so that logits are finite; the text is
nonsense. The same bytes on every machine (fixed seed).
"""

from __future__ import annotations

import argparse
import math
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


SHAPES = {
    "1.1b": Shape(22, 2048, 32, 4, 5632, 49152, 2048, 1e4),
    "8b": Shape(32, 4096, 32, 8, 14336, 128256, 131072, 5e5),
}
# Where the types' binary16 factors are, and the root mean square of what they multiply, quants and scales together.
_FACTORS = {Type.Q4_K: ((0, 2), 180.0), Type.Q6_K: ((208,), 1400.0)}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, int], Type]]:
    """Name, rows and columns, and type of each matrix, in llama.cpp's order."""
    hidden, narrow = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    yield "token_embd.weight", (shape.vocabulary, hidden), Type.Q4_K
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
    block_cols, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    some = min(rows, 1024)
    data = rng.integers(0, 256, (some * cols // block_cols, block_bytes), dtype=np.uint8)
    at, size = _FACTORS[kind]
    for offset in at:
        factor = np.float16(1 / (size * math.sqrt(cols)))
        data[:, offset : offset + 2] = np.frombuffer(factor.tobytes(), np.uint8)
    return np.resize(data.reshape(some, -1), (rows, cols // block_cols * block_bytes))


def make(shape: Shape, path: Path) -> None:
    """Write the file."""
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
    for name, (rows, cols), kind in tensors(shape):
        block_cols, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        row_bytes = cols // block_cols * block_bytes
        writer.add_tensor_info(name, (rows, row_bytes), np.dtype(np.uint8), rows * row_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.hidden, np.float32))
    for _, (rows, cols), kind in tensors(shape):
        writer.write_tensor_data(blocks(rows, cols, kind, rng))
    writer.close()


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
    options = parser.parse_args()
    make(SHAPES[options.shape], options.path)


if __name__ == "__main__":
    main()
