"""What clients see of the model: its name, tokenizer, chat template and end-of-sequence tokens.

Owns how these are read from a model folder. Does not know weights and shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from rbee.errors import ModelError
from rbee.models import synthetic
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.tokenizer import TextCodec

if TYPE_CHECKING:
    from pathlib import Path

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ServedModel:
    """A model as clients see it."""

    name: str  # what requests call it
    codec: TextCodec  # text to token ids and back
    chat_template: ChatTemplate | None  # None for a model that cannot chat
    end_token_ids: frozenset[int]  # end a sequence unless a request ignores them


def load(name: str, folder: Path) -> ServedModel:
    """Read a model folder (tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json).

    Raises:
        ModelError: a file is missing or unreadable.
    """
    codec = TextCodec.load(folder)
    settings = _read_json(folder / "tokenizer_config.json")
    special_tokens = {key: token for key in _SPECIAL_TOKENS if (token := _content(settings.get(key))) is not None}
    template = _template(folder, settings)
    return ServedModel(
        name=name,
        codec=codec,
        chat_template=None if template is None else ChatTemplate(template, special_tokens),
        end_token_ids=_end_token_ids(folder, codec, special_tokens.get("eos_token")),
    )


def load_synthetic(name: str) -> ServedModel:
    """The synthetic model: a token is a byte, and nothing ends a sequence but its length."""
    return ServedModel(
        name=name,
        codec=TextCodec(synthetic.tokenizer()),
        chat_template=ChatTemplate(synthetic.CHAT_TEMPLATE, {}),
        end_token_ids=frozenset(),
    )


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or an entry of tokenizer_config.json (older models: several)."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _end_token_ids(folder: Path, codec: TextCodec, eos_token: str | None) -> frozenset[int]:
    """The ids of generation_config.json (else config.json), and the tokenizer's eos_token, which ends a chat turn."""
    given = _read_json(folder / "generation_config.json").get("eos_token_id")
    if given is None:
        given = _read_json(folder / "config.json").get("eos_token_id")
    token_ids = set(given if isinstance(given, list) else [given])
    if eos_token is not None:
        token_ids.add(codec.token_id(eos_token))
    return frozenset(token_ids - {None})


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token  # both forms are in use


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is no such file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise ModelError(f"{path} is not a JSON object: {error}. Fetch or convert the model again.") from error
