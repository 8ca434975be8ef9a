"""From what the user calls a model to the folder or GGUF file that it is in.

Owns the order in which the meanings of a name are tried. Does not know catalogue models.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rbee.errors import ModelError
from rbee.models import catalogue
from rbee.models.folder import adapter_in, check_folder, has_weights
from rbee.models.gguf.names import OfferedModel, listed, offered_models
from rbee.models.hub import fetch_from_hub, is_hub_model

if TYPE_CHECKING:
    from rbee.models.progress import Progress


_CHOICES = (
    "Give a name from `rbee pull --list`, a folder, a .gguf file, a Hub id such as org/name or org/name:Q4_K_M, or "
    "'synthetic'."
)
_LONGEST_SHOWN = 200  # characters of a name that is none


class FoundModel(NamedTuple):
    """What clients call a model, and its absolute path: of a checked folder, or of a GGUF file (its first shard)."""

    name: str
    path: Path


def find(model: str, *, progress: Progress) -> FoundModel:
    """Find `model`: a folder, a .gguf file, or a Hub id, which is downloaded if need be; the first of these that fits.

    Raises:
        ModelError: there is no such model, or it is not complete.
    """
    if not model:
        raise ModelError(f"MODEL (or --model) is empty. {_CHOICES}")
    path = Path(model)
    try:
        path = path.expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    except RuntimeError:  # there is no such user
        is_folder = exists = False
    except OSError as error:
        raise ModelError(f"The model {_shortened(model)!r} cannot be used: {error.strerror}. {_CHOICES}") from error
    if is_folder:
        return _in_folder(path.resolve(), progress)
    if exists:
        path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would lose the names of files in the Hub's cache
        return FoundModel(OfferedModel((path,)).name, path)
    is_path = model.startswith(("/", "./", "../", "~")) or (model.endswith(".gguf") and ":" not in model)
    if is_path:
        shown = model if model.startswith("~") and path == Path(model) else path.absolute()
        raise ModelError(f"There is no model file or folder {shown}. Check the path.")
    if is_hub_model(model):
        path = fetch_from_hub(model, progress=progress)
        _note_adapter(path, progress)
        return FoundModel(model, path)
    meant = catalogue.nearest(model)
    raise ModelError(
        f"There is no model called {_shortened(model)!r}.{f' Did you mean {meant!r}?' if meant else ''} {_CHOICES}"
    )


def _shortened(model: str) -> str:
    return model if len(model) <= _LONGEST_SHOWN else f"{model[:_LONGEST_SHOWN]}..."


def _in_folder(folder: Path, progress: Progress) -> FoundModel:
    if not has_weights(folder) and (ggufs := _ggufs_in(folder)):
        models = offered_models(str(path.relative_to(folder)) for path in ggufs)
        if len(models) != 1:
            what = f"{len(models)} GGUF models: {listed(models)}" if models else "GGUF files, but none is a model"
            raise ModelError(f"The folder {folder} holds {what}. Give --model the path of one.")
        return FoundModel(models[0].name, folder / models[0].files[0])
    check_folder(folder)
    _note_adapter(folder, progress)
    return FoundModel(folder.name, folder)


def _ggufs_in(folder: Path) -> list[Path]:
    """The GGUF files in `folder`; if there are none, those one level below, where some repositories have them."""
    return sorted(folder.glob("*.gguf")) or sorted(folder.glob("*/*.gguf"))


def _note_adapter(path: Path, progress: Progress) -> None:
    if path.is_dir() and (adapter := adapter_in(path)):
        progress.note(f"{adapter} is not used: rbee serves the model beside it without its LoRA adapter.")
