"""Checks that a folder holds a model that can be served as it is, and reads its configuration.

Owns the cheap checks: which files there must be, that no weights file is cut short, and that its weights can be used
without further facts. Reads no weights and knows no architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.json_files import read_json, read_object
from rbee.models.safetensors_header import read_safetensors_header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_INDEX = "model.safetensors.index.json"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_*.safetensors"


def check_folder(folder: Path) -> None:
    """Raise a ModelError that names what `folder` lacks, and how to get it, unless it is a complete model."""
    if adapter_in(folder) and not has_weights(folder):
        raise ModelError(_only_an_adapter(folder))
    if not (folder / "config.json").is_file():
        raise ModelError(f"The model folder {folder} has no config.json. It comes with every model of the Hub.")
    config = read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"The model folder {folder} has no tokenizer.json. Make it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        )
    has_scales = any(part.get("quantization_config") for part in (config, text_config(config)))
    for shard in weights_files(folder):
        for name, tensor in read_safetensors_header(shard).items():
            if tensor.type.startswith("F8_") and not has_scales:
                raise ModelError(
                    f"{shard} holds {name} in 8-bit floats ({tensor.type}), and config.json has no "
                    "quantization_config with their scales. Get the config.json that belongs to these weights, or the "
                    "model in bfloat16."
                )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder, or a ModelError if it cannot be read or is no JSON object."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except OSError as error:
        raise ModelError(
            f"The folder {folder} holds no model: config.json cannot be read ({error.strerror or error})."
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object. Copy the model's folder again.")
    return config


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of `config` that describes the language model: all of it, unless the model reads more than text."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def has_weights(folder: Path) -> bool:
    """Whether `folder` has a model's *.safetensors files, or their index."""
    return (folder / _INDEX).is_file() or bool(_single_files(folder))


def weights_files(folder: Path) -> list[Path]:
    """The *.safetensors files with the model's weights, or a ModelError if there are none or some are missing."""
    index = folder / _INDEX
    if not index.is_file():
        if found := _single_files(folder):
            return found
        raise ModelError(
            f"The model folder {folder} has no *.safetensors file. Save the model with transformers: "
            "model.save_pretrained(folder)."
        )
    try:
        shards = sorted({folder / name for name in read_json(index)["weight_map"].values()})
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} has no weight_map from weights to files. Copy the model's folder again.") from error
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ModelError(
            f"The model folder {folder} lacks {len(missing)} of the {len(shards)} weights files in {_INDEX}, "
            f"{missing[0]} among them. Copy the model's folder again."
        )
    return shards


def adapter_in(folder: Path) -> Path | None:
    """A file of a LoRA adapter in `folder`, or None."""
    files = [folder / _ADAPTER_CONFIG, *sorted(folder.glob(_ADAPTER_WEIGHTS))]
    return next((file for file in files if file.is_file()), None)


def _single_files(folder: Path) -> list[Path]:
    return sorted(set(folder.glob("*.safetensors")) - set(folder.glob(_ADAPTER_WEIGHTS)))


def _only_an_adapter(folder: Path) -> str:
    base = read_object(folder / _ADAPTER_CONFIG).get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base else ""
    return (
        f"The folder {folder} holds a LoRA adapter{of}, which is no model by itself. Merge it into its model with "
        "peft: PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(new_folder)."
    )
