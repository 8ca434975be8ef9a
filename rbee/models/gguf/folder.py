"""A GGUF file as a model folder: everything but the weights, which stay in the file.

Owns which files the folder has. Does not know the cache.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rbee.models.gguf.config import config_of
from rbee.models.gguf.small_files import files_of
from rbee.models.gguf.tokenizer import special_token_ids, tokenizer_files

if TYPE_CHECKING:
    from pathlib import Path

    from rbee.models.gguf.files import GGUFModel
    from rbee.models.progress import Progress


def write_folder(model: GGUFModel, folder: Path, progress: Progress) -> None:
    """Write config.json, the tokenizer's files, generation_config.json, tokenizer_config.json and the chat templates.

    Raises:
        ModelError: the architecture is not supported, or the metadata make no sense.
    """
    progress.stage("reading the model's configuration")
    config = config_of(model)
    ids = special_token_ids(model.metadata)
    ends = sorted(ids.ends, key=lambda token: (token != ids.eos, token))
    config |= {"bos_token_id": ids.bos, "eos_token_id": ends or None}
    small = files_of(model.metadata, eos_ids=ends, bos_id=ids.bos)
    progress.stage("building the tokenizer")
    for name, content in {"config.json": _json(config), **tokenizer_files(model.metadata), **small}.items():
        (folder / name).write_bytes(content)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
