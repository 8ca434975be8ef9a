"""The weights of a model as the native kernels read them.

Owns which matrices and vectors a model has, what they are called in GGUF and safetensors files, and the format of
each. `weight_plan` packs them; native/kernels defines the formats. Does not know what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import _kernels
from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.weight_plan import MappedFile, MatrixPlan, WeightPlan
from rbee.errors import ModelError
from rbee.models import gguf_of
from rbee.models.folder import weights_files
from rbee.models.gguf.header import GGML_TYPES, read_header
from rbee.models.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from rbee.engine.runners.native.spec import ModelSpec
    from rbee.models.stored_tensor import StoredTensor

FORMAT_NAMES = _kernels.WEIGHT_FORMATS
_Q4, _Q8 = FORMAT_NAMES.index("q4"), FORMAT_NAMES.index("q8")

# Those of pack.h that can be packed; F32, F16 and BF16 are safetensors' names too.
_SOURCE_TYPES = {
    name: GGML_TYPES[name] for name in ("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16")
}
_FLOATS = frozenset({"F32", "F16", "BF16"})
_GROUP = 32

# Our name; transformers' and GGUF's, in the whole model and in a layer. A bias is called like its matrix.
_MODEL_NAMES = {
    "embedding": ("model.embed_tokens", "token_embd"),
    "head": ("lm_head", "output"),
    "final_norm": ("model.norm", "output_norm"),
}
_LAYER_NAMES = {
    "query": ("self_attn.q_proj", "attn_q"),
    "key": ("self_attn.k_proj", "attn_k"),
    "value": ("self_attn.v_proj", "attn_v"),
    "output": ("self_attn.o_proj", "attn_output"),
    "gate": ("mlp.gate_proj", "ffn_gate"),
    "up": ("mlp.up_proj", "ffn_up"),
    "down": ("mlp.down_proj", "ffn_down"),
    "query_norm": ("self_attn.q_norm", "attn_q_norm"),
    "key_norm": ("self_attn.k_norm", "attn_k_norm"),
    "attention_norm": ("input_layernorm", "attn_norm"),
    "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
}
_NAMES_WITH_POST_NORMS = {
    "post_attention_norm": ("post_attention_layernorm", "post_attention_norm"),
    "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
    "post_mlp_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
}


@dataclass(frozen=True)
class _Wanted:
    """A tensor that the model needs; llama.cpp's converter may have reordered the rows of its `turned_heads`."""

    name: str  # ours
    stored_name: str  # its name in the file
    shape: tuple[int, ...]  # outermost dimension first
    turned_heads: int = 0


@dataclass(frozen=True)
class _Found:
    path: Path
    stored: StoredTensor


@dataclass(frozen=True)
class _Source:
    """The files of a model."""

    gguf: Path | None  # the GGUF file, or None if there are safetensors
    files: list[Path]  # all of them


def plan_weights(spec: ModelSpec, folder: Path, *, quantize: str) -> WeightPlan:
    """The weights of the model in `folder`: of the GGUF file that it was made from if there is one, or its safetensors.

    Args:
        spec: of the model.
        folder: a ready folder.
        quantize: of matrices of floats: "none" keeps them, "q4" and "q8" hold them in 4 or 8 bits, in groups of 32
            columns; with "q4" embedding and head get 8, which costs little and saves most of the loss. A matrix whose
            rows are not whole groups stays as it is. Blocks lose nothing in any case.

    ModelError: a tensor is missing or has another shape, or a file is damaged. Unsupported: a type that cannot be held.
    """
    gguf = gguf_of(folder)
    source = _Source(gguf, weights_files(folder) if gguf is None else [gguf])
    wanted = list(_wanted(spec, gguf=gguf is not None))
    return _plan(spec, wanted, source, quantize)


def _wanted(spec: ModelSpec, *, gguf: bool) -> Iterator[_Wanted]:
    """All tensors in the order in which a step reads them, but for the embedding, as a GGUF or safetensors has them."""
    language, prefix = (1, "blk") if gguf else (0, "model.layers")
    hidden, heads, kv_heads = spec.hidden_size, spec.num_heads, spec.num_kv_heads
    queries, keys = heads * spec.head_dim, kv_heads * spec.head_dim
    matrices = {
        "query": (queries, hidden),
        "key": (keys, hidden),
        "value": (keys, hidden),
        "output": (hidden, queries),
        "gate": (spec.intermediate_size, hidden),
        "up": (spec.intermediate_size, hidden),
        "down": (hidden, spec.intermediate_size),
    }
    vectors = {"attention_norm": hidden, "mlp_norm": hidden}
    if spec.has_qk_norm:
        vectors |= {"query_norm": spec.head_dim, "key_norm": spec.head_dim}
    if spec.has_post_norms:
        vectors |= {"post_attention_norm": hidden, "post_mlp_norm": hidden}
    biased = ["query", "key", "value"] * spec.has_qkv_bias
    biased += ["output"] * spec.has_output_bias
    biased += ["gate", "up", "down"] * spec.has_mlp_bias
    turned = {"query": heads, "key": kv_heads}
    names = _LAYER_NAMES | (_NAMES_WITH_POST_NORMS if spec.has_post_norms else {})
    for layer in range(len(spec.layers)):
        for part, shape in (*matrices.items(), *((part, (size,)) for part, size in vectors.items())):
            ours, theirs = f"layers.{layer}.{part}", f"{prefix}.{layer}.{names[part][language]}"
            yield _Wanted(ours, theirs + ".weight", shape, turned.get(part, 0))
            if part in biased:
                yield _Wanted(ours + "_bias", theirs + ".bias", shape[:1], turned.get(part, 0))
    shapes = {"final_norm": (hidden,), "embedding": (spec.vocab_size, hidden)}
    if not spec.tied_embeddings:
        shapes["head"] = (spec.vocab_size, hidden)
    for part, shape in shapes.items():
        yield _Wanted(part, f"{_MODEL_NAMES[part][language]}.weight", shape)


def _plan(spec: ModelSpec, wanted: list[_Wanted], source: _Source, quantize: str) -> WeightPlan:
    """Where everything comes from, and what becomes of it; vectors are few and small, and ready in it."""
    tensors, turned = _tensors(source)
    offset = 1 if spec.unit_offset_norms and source.gguf is None else 0  # GGUF's norms have it
    files = {path: MappedFile(path) for path in source.files}
    matrices, vectors = {}, {}
    for want in wanted:
        found = _find(want, tensors, source)
        stored = found.stored
        if stored.type not in (_SOURCE_TYPES if len(want.shape) == 2 else _FLOATS):
            raise Unsupported(
                f"its tensor {want.stored_name} is of the type {stored.type}, which the native kernels do not hold"
            )
        data = files[found.path].data[stored.offset : stored.offset + stored.size]
        order = _row_order(want) if turned and want.turned_heads else None
        if len(want.shape) == 2:
            rows, cols = want.shape
            code = _SOURCE_TYPES[stored.type]
            chosen = _chosen(want.name, stored.type, cols, quantize)
            form = _kernels.held_by(data, code) if chosen is None else chosen
            matrices[want.name] = MatrixPlan(form, rows, cols, data, code, order)
        else:
            vector = _floats(data, stored.type)
            is_norm = want.name.endswith("norm")
            vectors[want.name] = (vector if order is None else vector[order]) + np.float32(offset if is_norm else 0)
    return WeightPlan(matrices, vectors, tuple(files.values()))


def _tensors(source: _Source) -> tuple[dict[str, _Found], bool]:
    """The tensors of all files, and whether the rows of queries and keys are in llama.cpp's order."""
    if source.gguf is not None:
        header = read_header(source.gguf)
        found = {name: _Found(source.gguf, tensor) for name, tensor in header.tensors.items()}
        return found, header.metadata["general.architecture"] == "llama"
    headers = {path: read_safetensors_header(path) for path in source.files}
    found = {name: _Found(path, tensor) for path, held in headers.items() for name, tensor in held.items()}
    if "model.embed_tokens.weight" not in found:
        raise Unsupported("its weights have other names than transformers gives them when it saves such a model")
    return found, False


def _find(want: _Wanted, tensors: dict[str, _Found], source: _Source) -> _Found:
    found = tensors.get(want.stored_name)
    if found is None:
        files = source.files[0] if len(source.files) == 1 else source.files[0].parent
        raise ModelError(
            f"The weights in {files} are incomplete: {want.stored_name} of shape {list(want.shape)} is missing. "
            "Copy or download the model again."
        )
    if found.stored.shape != want.shape:
        raise ModelError(
            f"The weights in {found.path} do not fit the model's config.json: {want.stored_name} has shape "
            f"{list(found.stored.shape)}, and {list(want.shape)} was expected. Copy or download the model again."
        )
    return found


def _chosen(name: str, stored_type: str, cols: int, quantize: str) -> int | None:
    """The format for `quantize`; None: the one that holds the matrix as it is."""
    if quantize == "none" or stored_type not in _FLOATS or cols % _GROUP:
        return None
    return _Q4 if quantize == "q4" and name not in ("embedding", "head") else _Q8


def _row_order(want: _Wanted) -> NDArray[np.uint32]:
    """Which row of the file each row is. It turns rows 2i and 2i + 1 of a head together, we i and i + head_dim / 2."""
    rows = np.arange(want.shape[0], dtype=np.uint32)
    return np.ascontiguousarray(rows.reshape(want.turned_heads, -1, 2).swapaxes(1, 2)).reshape(-1)


def _floats(data: NDArray[np.uint8], stored_type: str) -> NDArray[np.float32]:
    if stored_type == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view("<f4" if stored_type == "F32" else "<f2").astype(np.float32)
