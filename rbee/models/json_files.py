"""Reads the small JSON files of a model. Does not know what is in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def read_json(path: Path) -> Any:
    """The value in `path`; OSError if it cannot be read, ModelError if it is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}). Copy or download the model again.") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in `path`, empty if there is no such file; ModelError if it cannot be read or is no JSON object."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object. Copy or download the model again.")
    return value
