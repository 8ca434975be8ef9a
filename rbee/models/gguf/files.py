"""A model in one GGUF file or several (shards).

Owns the check that they belong together and that none is missing. Does not know what metadata and tensors mean.

gguf-split (llama.cpp, tools/gguf-split) writes the keys split.no, split.count and split.tensors.count into each shard.
The first one has all other keys too, and may hold no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.gguf.header import read_header
from rbee.models.gguf.names import shards_of
from rbee.models.stored_tensor import PlacedTensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Files that llama.cpp reads beside a model, by general.type or architecture.
_BESIDE_A_MODEL = {
    "adapter": "a LoRA adapter: merge it into its model, as llama.cpp's llama-export-lora does, and serve the result",
    "controlvector": "a control vector, which changes a model: serve the model itself",
    "mmproj": "the vision or audio part of a model: serve the file with its language part",
    "clip": "the vision or audio part of a model: serve the file with its language part",
    "imatrix": "an importance matrix, which is used to quantize a model: serve the model itself",
}


@dataclass(frozen=True)
class GGUFModel:
    """The files of a model, the first one's metadata (see `GGUFHeader`), and the tensors of all."""

    files: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: dict[str, PlacedTensor]


def open_gguf(path: Path) -> GGUFModel:
    """Read the headers of the model that the GGUF file `path` is, or is a shard of.

    Raises:
        ModelError: a file is damaged, or a shard is missing or does not belong to the others.
    """
    files = shards_of(path)
    if missing := [file.name for file in files if not file.is_file()]:
        if files == (path,):
            raise ModelError(f"There is no model file {path}. Check the path.")
        raise ModelError(
            f"The model {path} has {len(files)} files, and {len(missing)} are missing, {missing[0]} among them. "
            "Download them into the same folder."
        )
    headers = [read_header(file) for file in files]
    check_is_model(files[0], headers[0].metadata)
    tensors: dict[str, PlacedTensor] = {}
    for number, (file, header) in enumerate(zip(files, headers, strict=True)):
        _check_shard(file, header.metadata, number, len(files))
        if double := next(iter(tensors.keys() & header.tensors.keys()), None):
            raise ModelError(f"{file} holds the tensor {double!r}, which {tensors[double].path} holds too.")
        tensors |= {name: PlacedTensor(file, tensor) for name, tensor in header.tensors.items()}
    if not tensors:
        raise ModelError(f"{path} holds no tensors: it is a vocabulary without a model. Download the model's file.")
    if not isinstance(headers[0].metadata.get("general.architecture"), str):
        raise ModelError(f"{path} does not name its architecture (key general.architecture). Convert the model again.")
    return GGUFModel(files, headers[0].metadata, tensors)


def check_is_model(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raise ModelError if the GGUF file `path` with this metadata is something else than a model."""
    for key in ("general.type", "general.architecture"):
        kind = metadata.get(key)
        if isinstance(kind, str) and kind in _BESIDE_A_MODEL:
            raise ModelError(f"{path} is no model but {_BESIDE_A_MODEL[kind]}.")


def _check_shard(file: Path, metadata: dict[str, Any], number: int, count: int) -> None:
    """Raise ModelError unless the file is the shard that its name says."""
    found = int(metadata.get("split.no", 0)), max(int(metadata.get("split.count", 1)), 1)
    if found != (number, count):
        raise ModelError(
            f"{file} is part {found[0] + 1} of {found[1]} by its own header, and part {number + 1} of {count} was "
            "expected by its name. Give it its own name back, or download the model again."
        )
