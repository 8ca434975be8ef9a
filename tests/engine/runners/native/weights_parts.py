"""Models whose packed weights are compared: what each of our names is in a transformers model, and GGUF files of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from rbee.engine import _kernels  # noqa: TID251 - to look at what was packed
from rbee.engine.runners.native.spec import read_spec
from rbee.engine.runners.native.weights import plan_weights

if TYPE_CHECKING:
    from pathlib import Path

    import transformers
    from numpy.typing import NDArray

    from rbee.engine.runners.native.weight_plan import WeightPlan


PARTS = {
    "attention_norm": "input_layernorm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "query": "self_attn.q_proj.weight",
    "key": "self_attn.k_proj.weight",
    "value": "self_attn.v_proj.weight",
    "output": "self_attn.o_proj.weight",
    "query_bias": "self_attn.q_proj.bias",
    "key_bias": "self_attn.k_proj.bias",
    "value_bias": "self_attn.v_proj.bias",
    "output_bias": "self_attn.o_proj.bias",
    "query_norm": "self_attn.q_norm.weight",
    "key_norm": "self_attn.k_norm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
GEMMA_PARTS = PARTS | {
    "post_attention_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


@dataclass
class Packed:
    """A packed matrix."""

    format: int
    rows: int
    cols: int
    data: NDArray[np.uint8]


@dataclass
class PackedWeights:
    """What a plan makes, by our names."""

    matrices: dict[str, Packed]
    vectors: dict[str, NDArray[np.float32]]


def load(folder: Path, *, quantize: str = "none") -> PackedWeights:
    """The packed weights of the folder."""
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    return packed(plan_weights(spec, folder, quantize=quantize))


def packed(plan: WeightPlan) -> PackedWeights:
    """Each matrix of a plan packed by itself."""
    matrices = {}
    for name, matrix in plan.matrices.items():
        data = np.empty(matrix.packed_bytes, np.uint8)
        order = matrix.row_order
        _kernels.pack(
            matrix.source,
            matrix.source_type,
            matrix.rows,
            matrix.cols,
            format=matrix.format,
            row_order=order,
            packed=data,
        )
        matrices[name] = Packed(matrix.format, matrix.rows, matrix.cols, data)
    return PackedWeights(matrices, plan.vectors)


def unpacked(weights: PackedWeights) -> dict[str, NDArray[np.float32]]:
    """Everything in floats."""
    matrices = {name: _kernels.unpack(m.data, m.format, m.rows, m.cols) for name, m in weights.matrices.items()}
    return matrices | weights.vectors


def expected(model: transformers.PreTrainedModel) -> dict[str, NDArray[np.float32]]:
    """What a model computes with, by our names; norms are ready to multiply with."""
    gemma = model.config.model_type == "gemma3_text"
    theirs = {name: parameter.detach().float().numpy() for name, parameter in model.named_parameters()}
    ours = {"embedding": theirs["model.embed_tokens.weight"], "final_norm": theirs["model.norm.weight"]}
    if "lm_head.weight" in theirs:
        ours["head"] = theirs["lm_head.weight"]
    for layer in range(model.config.num_hidden_layers):
        for part, name in (GEMMA_PARTS if gemma else PARTS).items():
            if (full := f"model.layers.{layer}.{name}") in theirs:
                ours[f"layers.{layer}.{part}"] = theirs[full]
    return {
        name: np.float32(1) + tensor if gemma and name.endswith("norm") else tensor for name, tensor in ours.items()
    }


def write_gguf(
    path: Path, tensors: dict[str, NDArray[np.float32]], kinds: dict[str, Type], *, heads: dict[str, int]
) -> dict[str, NDArray[np.float32]]:
    """Write tensors by our names, as llama.cpp's converter does; returns what the gguf package makes of each.

    Args:
        path: of the file.
        tensors: by our names.
        kinds: of each part ("query", "embedding" ...); F32 for parts that are not in it.
        heads: of "query" and "key", if their rows are to be in llama.cpp's order, which is the architecture llama's.
    """
    writer = gguf.GGUFWriter(path, "llama" if heads else "qwen2")
    held = {}
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        kind = kinds.get(part, Type.F32)
        blocks = blocks_of(tensor, kind)
        held[name] = tensor if kind in (Type.F32, Type.F64) else gguf.quants.dequantize(blocks, kind)
        turned = heads.get(part.removesuffix("_bias"))
        if turned:
            halves = blocks.reshape(turned, 2, len(blocks) // turned // 2, -1)
            blocks = halves.swapaxes(1, 2).reshape(blocks.shape)
        writer.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def gguf_name(name: str) -> str:
    """What GGUF calls one of our tensors."""
    where, _, part = name.rpartition(".")
    kind = "bias" if part.endswith("_bias") else "weight"
    names = {
        "embedding": "token_embd",
        "head": "output",
        "final_norm": "output_norm",
        "attention_norm": "attn_norm",
        "mlp_norm": "ffn_norm",
        "query": "attn_q",
        "key": "attn_k",
        "value": "attn_v",
        "output": "attn_output",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
        "query_norm": "attn_q_norm",
        "key_norm": "attn_k_norm",
        "post_attention_norm": "post_attention_norm",
        "post_mlp_norm": "post_ffw_norm",
    }
    theirs = names[part.removesuffix("_bias")]
    return f"{where.replace('layers', 'blk')}.{theirs}.{kind}" if where else f"{theirs}.{kind}"


# Of types that the gguf package cannot make: where the binary16 factors of a block are, and about what they multiply.
_FACTORS = {
    Type.Q2_K: ((80, 82), 15),
    Type.Q3_K: ((108,), 60),
    Type.Q4_K: ((0, 2), 300),
    Type.Q5_K: ((0, 2), 600),
    Type.Q6_K: ((208,), 1400),
    Type.IQ2_XXS: ((0,), 100),
    Type.IQ2_XS: ((0,), 100),
    Type.IQ4_NL: ((0,), 70),
    Type.IQ4_XS: ((0,), 1300),
}


def blocks_of(tensor: NDArray[np.float32], kind: Type) -> NDArray[Any]:
    """A tensor in this type; types that the gguf package cannot make are any blocks whose weights have a sane size."""
    if kind in (Type.F32, Type.F64):
        return tensor.astype(np.float32 if kind == Type.F32 else np.float64)
    if kind not in _FACTORS:
        return gguf.quants.quantize(tensor, kind)
    cols, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (tensor.size // cols, size), dtype=np.uint8)
    places, times = _FACTORS[kind]
    for at in places:
        factors = rng.uniform(0.3, 3, (len(blocks), 1)) / times
        blocks[:, at : at + 2] = factors.astype(np.float16).view(np.uint8)
    return blocks.reshape(len(tensor), -1)
