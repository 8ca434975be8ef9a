"""Checks that a folder holds a model that can be served as it is.

Owns the cheap checks: which files there must be, and that no weights file is cut short. Reads no weights, changes
nothing, and knows no architecture.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Raise a ModelError that says what `folder` lacks, and how to get it, unless it is a complete model."""
    if not (folder / "config.json").is_file():
        guess = next(iter(sorted(folder.glob("*.gguf"))), None)
        remedy = (
            f"To serve the GGUF file in it, give --model {guess}" if guess else "It comes with every model of the Hub"
        )
        raise ModelError(f"The model folder {folder} has no config.json. {remedy}.")
    _read_json(folder / "config.json")
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"The model folder {folder} has no tokenizer.json. Make it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        )
    for shard in _shards(folder):
        _check_safetensors(shard)


def _shards(folder: Path) -> list[Path]:
    """The weights files, all of them present."""
    index = folder / _INDEX
    if not index.is_file():
        if found := sorted(folder.glob("*.safetensors")):
            return found
        raise ModelError(
            f"The model folder {folder} has no *.safetensors file. Save the model with transformers: "
            "model.save_pretrained(folder)."
        )
    try:
        shards = sorted({folder / name for name in _read_json(index)["weight_map"].values()})
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} has no weight_map from weights to files. Copy the model's folder again.") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelError(
            f"The model folder {folder} lacks {len(missing)} of the {len(shards)} weights files in {_INDEX}, "
            f"{missing[0]} among them. Copy the model's folder again."
        )
    return shards


def _check_safetensors(path: Path) -> None:
    """Check a weights file's header against its size.

    Layout (safetensors' own README): uint64 little-endian length of the header, the header in JSON with each
    tensor's [begin, end) in the data, the data.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size - 8 else b""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        data = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"The weights file {path} is cut short or no safetensors file: it has {size} bytes and no whole header. "
            "Copy or download it again."
        ) from error
    if 8 + length + data != size:
        raise ModelError(
            f"The weights file {path} is damaged: its header asks for {8 + length + data} bytes and it has {size}. "
            "Copy or download it again."
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}). Copy the model's folder again.") from error
