"""The weights of a model as the native kernels read them.

Owns where each matrix and vector comes from, and the format of each. `tensor_names` knows what files call them,
`packed_weights` keeps them on the disk; native/kernels defines the formats. Does not know what is computed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import _kernels
from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.packed_weights import MatrixPlan, Plan, Weights, load_or_pack, map_file
from rbee.engine.runners.native.tensor_names import TensorNames, Wanted
from rbee.errors import ModelError
from rbee.models import gguf_of
from rbee.models.folder import weights_files
from rbee.models.gguf.header import GGML_TYPES, read_header
from rbee.models.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rbee.engine.runners.interface import OnLoading
    from rbee.engine.runners.native.spec import ModelSpec
    from rbee.models.stored_tensor import StoredTensor

__all__ = ["FORMAT_NAMES", "Weights", "load_weights"]

FORMAT_NAMES = _kernels.WEIGHT_FORMATS
_Q4, _Q8 = FORMAT_NAMES.index("q4"), FORMAT_NAMES.index("q8")

# Those of pack.h that can be packed; F32, F16 and BF16 are safetensors' names too.
_SOURCE_TYPES = {
    name: GGML_TYPES[name] for name in ("F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16")
}
_FLOATS = frozenset({"F32", "F16", "BF16"})
_GROUP = 32


@dataclass(frozen=True)
class _Found:
    path: Path
    stored: StoredTensor


@dataclass(frozen=True)
class _Source:
    """The files of a model."""

    gguf: Path | None  # the GGUF file, or None if there are safetensors
    files: list[Path]  # all of them


def load_weights(
    spec: ModelSpec,
    folder: Path,
    *,
    quantize: str,
    on_loading: OnLoading,
    threads: int = 0,
) -> Weights:
    """The weights of the model in `folder`: of the GGUF file that it was made from if there is one, or its safetensors.

    Args:
        spec: of the model.
        folder: a ready folder.
        quantize: of matrices of floats: "none" keeps them, "q4" and "q8" hold them in 4 or 8 bits, in groups of 32
            columns; with "q4" embedding and head get 8, which costs little and saves most of the loss. A matrix whose
            rows are not whole groups stays as it is. Blocks lose nothing in any case.
        on_loading: called for each part while weights are packed.
        threads: that pack; 0 takes one per core this process may use.

    ModelError: a tensor is missing or has another shape, or a file is damaged. Unsupported: a type that cannot be held,
    or a tensor that the model might need and the kernels do not use.
    """
    gguf = gguf_of(folder)
    source = _Source(gguf, weights_files(folder) if gguf is None else [gguf])
    # What packing depends on beside the files' content.
    facts = repr((quantize, _turned_size(spec), dataclasses.replace(spec, ropes=())))
    return load_or_pack(
        folder.name,
        source.files,
        facts=hashlib.sha256(facts.encode()).hexdigest(),
        make_plan=lambda: _plan(spec, source, quantize),
        on_loading=on_loading,
        threads=threads,
    )


def _plan(spec: ModelSpec, source: _Source, quantize: str) -> Plan:
    """Where everything comes from, and what becomes of it; vectors are few and small, and ready in it."""
    tensors, architecture = _tensors(source)
    names = TensorNames(spec, tensors, architecture)
    maps = {path: map_file(path) for path in source.files}
    wanted = list(names.wanted())
    read = {want.stored_name for want in wanted}
    if names.head in tensors and names.head not in read:  # tied, says the config
        read.add(names.head)
        if not _is_the_same(names.head, wanted[-1].stored_name, tensors, maps):
            wanted.append(names.wanted_head())
    if unknown := names.unknown(read):
        raise Unsupported(f"its tensor {unknown[0]} is one that the native kernels do not use")
    offset = 1 if spec.unit_offset_norms and source.gguf is None else 0  # GGUF's norms have it
    matrices, vectors = {}, {}
    for want in wanted:
        found = _find(want, tensors, source)
        stored = found.stored
        if stored.type not in (_SOURCE_TYPES if len(want.shape) == 2 else _FLOATS):
            raise Unsupported(
                f"its tensor {want.stored_name} is of the type {stored.type}, which the native kernels do not hold"
            )
        row = stored.size // stored.shape[0]
        begin = stored.offset + want.first_row * row
        data = maps[found.path][begin : begin + want.shape[0] * row]
        order = _row_order(want, _turned_size(spec)) if want.neighbours else None
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
    return Plan(matrices, vectors)


def _tensors(source: _Source) -> tuple[dict[str, _Found], str | None]:
    """The tensors of all files, and the architecture that a GGUF has."""
    if source.gguf is not None:
        header = read_header(source.gguf)
        found = {name: _Found(source.gguf, tensor) for name, tensor in header.tensors.items()}
        return found, str(header.metadata["general.architecture"])
    headers = {path: read_safetensors_header(path) for path in source.files}
    return {name: _Found(path, tensor) for path, held in headers.items() for name, tensor in held.items()}, None


def _is_the_same(name: str, other: str, tensors: dict[str, _Found], maps: dict[Path, NDArray[np.uint8]]) -> bool:
    """Whether two tensors have the same content, as a model's head and embedding do where both are stored."""
    one, two = (tensors.get(each) for each in (name, other))
    if one is None or two is None or (one.stored.type, one.stored.shape) != (two.stored.type, two.stored.shape):
        return False
    begins = [maps[each.path][each.stored.offset :] for each in (one, two)]
    return np.array_equal(begins[0][: one.stored.size], begins[1][: two.stored.size])


def _find(want: Wanted, tensors: dict[str, _Found], source: _Source) -> _Found:
    found = tensors.get(want.stored_name)
    shape = (want.stored_rows or want.shape[0], *want.shape[1:])
    if found is None:
        files = source.files[0] if len(source.files) == 1 else source.files[0].parent
        raise ModelError(
            f"The weights in {files} are incomplete: {want.stored_name} of shape {list(shape)} is missing. "
            "Copy or download the model again."
        )
    if found.stored.shape != shape:
        raise ModelError(
            f"The weights in {found.path} do not fit the model's config.json: {want.stored_name} has shape "
            f"{list(found.stored.shape)}, and {list(shape)} was expected. Copy or download the model again."
        )
    return found


def _chosen(name: str, stored_type: str, cols: int, quantize: str) -> int | None:
    """The format for `quantize`; None: the one that holds the matrix as it is."""
    if quantize == "none" or stored_type not in _FLOATS or cols % _GROUP:
        return None
    return _Q4 if quantize == "q4" and name not in ("embedding", "head") else _Q8


def _turned_size(spec: ModelSpec) -> int:
    """Numbers of a head that are turned. Where a layer turns none, the order of its rows does not matter."""
    return 2 * max(len(rope.inverse_frequencies) for rope in spec.ropes)


def _row_order(want: Wanted, turned: int) -> NDArray[np.uint32]:
    """Which row of the file each row is. It turns rows 2i and 2i + 1 of a head together, we i and i + turned / 2."""
    rows = np.arange(want.shape[0], dtype=np.uint32).reshape(want.neighbours, -1)
    pairs = rows[:, :turned].reshape(want.neighbours, -1, 2).swapaxes(1, 2).reshape(want.neighbours, turned)
    return np.concatenate([pairs, rows[:, turned:]], axis=1).reshape(-1)


def _floats(data: NDArray[np.uint8], stored_type: str) -> NDArray[np.float32]:
    if stored_type == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view("<f4" if stored_type == "F32" else "<f2").astype(np.float32)
