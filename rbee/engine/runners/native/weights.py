"""The weights of a model as the native kernels read them.

Owns where each matrix and vector comes from, and the format of each. `tensor_names` knows what files call them,
`weight_plan` packs them; native/kernels defines the formats. Does not know what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import _kernels
from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.tensor_names import TensorNames, Wanted
from rbee.engine.runners.native.weight_plan import MappedFile, MatrixPlan, WeightPlan
from rbee.errors import ModelError
from rbee.models import gguf_of
from rbee.models.folder import weights_files
from rbee.models.gguf import GGML_TYPES, open_gguf
from rbee.models.safetensors_header import read_safetensors_header
from rbee.models.stored_tensor import PlacedTensor

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rbee.engine.runners.native.spec import ModelSpec

FORMAT_NAMES = _kernels.WEIGHT_FORMATS
_Q4, _Q8 = FORMAT_NAMES.index("q4"), FORMAT_NAMES.index("q8")

# F32, F16 and BF16 are safetensors' names too.
_SOURCE_TYPES = {name: GGML_TYPES[name] for name in _kernels.SOURCE_TYPES}
_FLOATS = frozenset({"F32", "F16", "BF16"})
_GROUP = 32


@dataclass(frozen=True)
class _Source:
    """A model's tensors, the files that they are in, and the architecture that GGUF files name."""

    files: tuple[Path, ...]
    tensors: dict[str, PlacedTensor]
    architecture: str | None = None


def plan_weights(spec: ModelSpec, folder: Path, *, quantize: str) -> WeightPlan:
    """The weights of the model in `folder`: of the GGUF file that it was made from if there is one, or its safetensors.

    Args:
        spec: of the model.
        folder: a ready folder.
        quantize: of matrices of floats: "none" keeps them, "q4" and "q8" hold them in 4 or 8 bits, in groups of 32
            columns; with "q4" embedding and head get 8, which costs little and saves most of the loss. A matrix whose
            rows are not whole groups stays as it is. Blocks lose nothing in any case.

    ModelError: a tensor is missing or has another shape, or a file is damaged. Unsupported: a type that cannot be held,
    or a tensor that the model might need and the kernels do not use.
    """
    source = _source(folder)
    tensors = source.tensors
    names = TensorNames(spec, tensors, source.architecture)
    files = {path: MappedFile(path) for path in source.files}
    wanted = list(names.wanted())
    read = {want.stored_name for want in wanted}
    if names.head in tensors and names.head not in read:  # the config ties it
        read.add(names.head)
        if not _is_the_same(names.head, wanted[-1].stored_name, tensors, files):
            wanted.append(names.wanted_head())
    if unknown := names.unknown(read):
        raise Unsupported(f"its tensor {unknown[0]} is one that the native kernels do not use")
    offset = 1 if spec.unit_offset_norms and source.architecture is None else 0  # GGUF's norms have it
    matrices, vectors = {}, {}
    for want in wanted:
        path, stored = _find(want, source)
        if stored.type not in (_SOURCE_TYPES if len(want.shape) == 2 else _FLOATS):
            raise Unsupported(
                f"its tensor {want.stored_name} is of the type {stored.type}, which the native kernels do not hold"
            )
        row = stored.size // stored.shape[0]
        begin = stored.offset + want.first_row * row
        data = files[path].data[begin : begin + want.shape[0] * row]
        order = _row_order(want, _turned_size(spec)) if want.neighbours else None
        if len(want.shape) == 2:
            rows, cols = want.shape
            code = _SOURCE_TYPES[stored.type]
            chosen = _chosen(want.name, stored.type, cols, quantize)
            form = _kernels.held_by(code) if chosen is None else chosen
            matrices[want.name] = MatrixPlan(form, rows, cols, data, code, order)
        else:
            vector = _floats(data, stored.type)
            if not np.isfinite(vector).all():
                raise ModelError(
                    f"{path} is damaged: its tensor {want.stored_name} holds infinite or undefined numbers. Copy or "
                    "download the model again."
                )
            is_norm = want.name.endswith("norm")
            vectors[want.name] = (vector if order is None else vector[order]) + np.float32(offset if is_norm else 0)
    return WeightPlan(matrices, vectors, tuple(files.values()), names.has_head)


def _source(folder: Path) -> _Source:
    if (gguf := gguf_of(folder)) is not None:
        model = open_gguf(gguf)
        return _Source(model.files, model.tensors, str(model.metadata["general.architecture"]))
    files = tuple(weights_files(folder))
    headers = {path: read_safetensors_header(path) for path in files}
    return _Source(files, {name: PlacedTensor(path, t) for path, held in headers.items() for name, t in held.items()})


def _is_the_same(name: str, other: str, tensors: dict[str, PlacedTensor], files: dict[Path, MappedFile]) -> bool:
    """Whether two tensors have the same content, as a model's head and embedding do where both are stored."""
    one, two = tensors[name], tensors.get(other)
    if two is None or (one.stored.type, one.stored.shape) != (two.stored.type, two.stored.shape):
        return False
    first, second = (files[path].data[held.offset : held.offset + held.size] for path, held in (one, two))
    return np.array_equal(first, second)


def _find(want: Wanted, source: _Source) -> PlacedTensor:
    found = source.tensors.get(want.stored_name)
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
