"""The chat templates in a model folder.

Owns the places where they stand and the forms that they have there. Does not compile or render them.

transformers writes chat_template.jinja and additional_chat_templates/NAME.jinja; older versions wrote an entry of
tokenizer_config.json, or chat_template.json for models that read more than text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError
from rbee.models.json_files import read_object

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = "default"
FILE = "chat_template.jinja"


def read_templates(folder: Path) -> dict[str, str]:
    """The templates by name, `DEFAULT` for the one that has none; a file of its own wins over an entry of another.

    Raises:
        ModelError: a file cannot be read, or holds something else.
    """
    templates: dict[str, str] = {}
    for name in ("tokenizer_config.json", "chat_template.json"):
        templates |= _named(read_object(folder / name).get("chat_template"), folder / name)
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (own := folder / FILE).exists():
        files[DEFAULT] = own
    return templates | {name: read_file(path) for name, path in files.items()}


def _named(given: Any, path: Path) -> dict[str, str]:
    """An entry as templates by name: one text, an object of texts, or a list of {"name", "template"}."""
    named = given
    if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        named = {entry.get("name"): entry.get("template") for entry in given}
    elif isinstance(given, str):
        named = {DEFAULT: given}
    if not given:
        return {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ModelError(
            f"{path} has a chat_template that is neither a text nor a list of named texts. Correct or remove it."
        )
    return named


def read_file(path: Path) -> str:
    """The template in a file. ModelError if it is no text, or cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"The chat template {path} is not UTF-8 (byte {error.start}). Save it as UTF-8, or remove it to serve the "
            "model without it."
        ) from error
    except OSError as error:
        raise ModelError(f"The chat template {path} cannot be read: {error.strerror or error}.") from error
