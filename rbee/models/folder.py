"""Checks that a folder holds a model that can be served as it is, and reads its configuration.

Owns the cheap checks: which files there must be, and that no weights file is cut short. Reads no weights and knows no
architecture.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    from pathlib import Path

_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Raise a ModelError that names what `folder` lacks, and how to get it, unless it is a complete model."""
    if not (folder / "config.json").is_file():
        guess = next(iter(sorted(folder.glob("*.gguf"))), None)
        remedy = (
            f"To serve the GGUF file in it, give --model {guess}" if guess else "It comes with every model of the Hub"
        )
        raise ModelError(f"The model folder {folder} has no config.json. {remedy}.")
    read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"The model folder {folder} has no tokenizer.json. Make it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        )
    for shard in weights_files(folder):
        read_safetensors_header(shard)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder, or a ModelError if it cannot be read or is no JSON object."""
    path = folder / "config.json"
    try:
        config = _read_json(path)
    except OSError as error:
        raise ModelError(
            f"The folder {folder} holds no model: config.json cannot be read ({error.strerror or error})."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object. Copy the model's folder again.")
    return config


def weights_files(folder: Path) -> list[Path]:
    """The *.safetensors files with the model's weights, or a ModelError if there are none or some are missing."""
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}). Copy the model's folder again.") from error
