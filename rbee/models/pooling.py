"""How a model says that the hidden states of a text become one vector.

Owns the files and keys: modules.json and what it leads to, as sentence-transformers writes them; pooling.json, which
stands for a GGUF's key `pooling_type`; and config.json's words on shorter vectors, which vLLM reads too. Does not know
requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rbee.errors import ModelError
from rbee.models.json_files import read_json, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rbee.pooling_params import PoolingMethod

POOLING_FILE = "pooling.json"  # {"pooling_mode": a name as sentence-transformers has it}
PoolingChoice = Literal["auto", "mean", "last", "cls"]

_METHODS: Mapping[str, PoolingMethod] = {"mean": "mean", "lasttoken": "last", "cls": "cls"}
_OLDER = "pooling_mode_"  # the beginning of a key for each mode, true or false


@dataclass(frozen=True)
class ModelPooling:
    """How a model's vectors are made."""

    method: PoolingMethod
    normalize: bool = True  # to length 1
    dimensions: tuple[int, ...] | None = None  # lengths to which a vector may be cut; empty: all; None: it may not


@dataclass(frozen=True)
class NoPooling:
    """A model does not say how its vectors are made, or has a way that is not supported."""

    reason: str = (
        "does not say how the hidden states of a text become one vector, as models made for embeddings do; a server "
        "started with --pooling last, or mean, takes vectors from it nevertheless"
    )  # completes "The model X ..."


def read_pooling(folder: Path, choice: PoolingChoice = "auto") -> ModelPooling | NoPooling:
    """What the model in `folder` says; a `choice` other than auto replaces its method.

    Raises:
        ModelError: a file is no JSON, or holds something else than what it is for.
    """
    modules = _modules(folder)
    types = [kind for kind, _ in modules]
    normalize = "Normalize" in types or not modules
    dimensions = _dimensions(folder)
    if choice != "auto":
        return ModelPooling(choice, normalize, dimensions)
    if others := [kind for kind in types if kind not in ("Transformer", "Pooling", "Normalize")]:
        return NoPooling(f"has a {others[0]} module (modules.json), which is not supported")
    paths = [folder / path / "config.json" for kind, path in modules if kind == "Pooling"]
    modes = _modes(read_object(paths[0] if paths else folder / POOLING_FILE))
    if not modes:
        return NoPooling()
    if len(modes) > 1 or modes[0] not in _METHODS:
        return NoPooling(f"makes vectors by {' and '.join(modes)}, and mean, last and cls are supported")
    return ModelPooling(_METHODS[modes[0]], normalize, dimensions)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Type, without its Python module, and folder of each entry of modules.json; empty if there is no such file."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in read_json(path)]
    except (LookupError, TypeError) as error:
        raise ModelError(f"{path} is no list of modules with type and path. Copy the model's folder again.") from error


def _modes(config: Mapping[str, Any]) -> list[str]:
    """The names of the modes, of which several make a vector of several parts."""
    given = config.get("pooling_mode")
    if given is not None:
        return [str(mode) for mode in given] if isinstance(given, list) else [str(given)]
    chosen = [key.removeprefix(_OLDER) for key, value in config.items() if key.startswith(_OLDER) and value is True]
    return [mode.removesuffix("_tokens").removesuffix("_token") for mode in chosen]


def _dimensions(folder: Path) -> tuple[int, ...] | None:
    config = read_object(folder / "config.json")
    given = config.get("matryoshka_dimensions")
    if isinstance(given, list) and given and all(isinstance(each, int) and each > 0 for each in given):
        return tuple(sorted(given))
    return () if config.get("is_matryoshka") is True else None
