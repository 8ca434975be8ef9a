"""What an OpenAI request says to the model: messages as chat templates want them, and the prompts of a completion.

Owns which roles, parts and lists are taken. Does not know templates or tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.fields import convert
from rbee.server.protocols.openai.schemas import (
    ADVISORY_MESSAGE,
    ADVISORY_PART,
    NEUTRAL_MESSAGE,
    Message,
    Part,
)

if TYPE_CHECKING:
    from rbee.server.protocols.fields import FieldReader


class GivenPrompt(NamedTuple):
    """A prompt as it was given: as text, or as token ids (text is None)."""

    where: str  # in the request: "prompt", or of several "prompt[i]"
    text: str | None
    token_ids: list[int]


def read_prompts(given: str | list[Any]) -> list[GivenPrompt]:
    """The prompts of a completion: a text or token ids, or a list of these, mixed as one likes.

    Raises:
        Refusal: the list holds something else.
    """
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    listed = given if several else [given]
    return [
        _read_prompt(prompt, "prompt" if len(listed) == 1 else f"prompt[{number}]")
        for number, prompt in enumerate(listed)
    ]


def _read_prompt(given: Any, where: str) -> GivenPrompt:
    if isinstance(given, str):
        return GivenPrompt(where, given, [])
    try:
        return GivenPrompt(where, None, convert(given, list[int]))
    except msgspec.ValidationError:
        raise invalid(
            where, f"{where} must be a string or a list of token ids; prompt may also be a list of these."
        ) from None


def read_messages(given: list[dict[str, Any]], reader: FieldReader) -> list[dict[str, Any]]:
    """Messages as chat templates want them: role, content as one string, perhaps name."""
    return [_read_message(message, reader, f"messages[{n}]") for n, message in enumerate(given)]


def _read_message(given: dict[str, Any], reader: FieldReader, path: str) -> dict[str, Any]:
    message = reader.read(given, Message, NEUTRAL_MESSAGE, path + ".", advisory=ADVISORY_MESSAGE)
    match message.role:
        case "system" | "user" | "assistant" | "developer":
            pass
        case "tool" | "function":
            raise invalid(
                f"{path}.role",
                f"{path}.role is {message.role!r}: tools are not supported yet.",
                code="unsupported_parameter",
            )
        case role:
            raise invalid(f"{path}.role", f"{path}.role must be system, developer, user or assistant, not {role!r}.")
    read: dict[str, Any] = {"role": message.role, "content": _text(message, reader, path)}
    return read if message.name is None else read | {"name": message.name}


def _text(message: Message, reader: FieldReader, path: str) -> str:
    """A message's content as one string; the texts of several parts are joined by line breaks.

    An assistant's turn may have none, as one that only called tools or was refused.
    """
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise invalid(f"{path}.content", f"{path}.content is missing.")
    if isinstance(message.content, str):
        return message.content
    return "\n".join(
        _part(part, reader, f"{path}.content[{n}]", message.role) for n, part in enumerate(message.content)
    )


def _part(given: dict[str, Any], reader: FieldReader, where: str, role: str) -> str:
    kind = given.get("type")
    if kind != "text" and (kind, role) != ("refusal", "assistant"):
        raise invalid(f"{where}.type", f"{where}.type must be 'text', not {kind!r}: this model reads text only.")
    part = reader.read(given, Part, {}, where + ".", advisory=ADVISORY_PART)
    text = part.text if kind == "text" else part.refusal
    if text is None:
        raise invalid(f"{where}.{kind}", f"{where}.{kind} is missing.", code="missing_parameter")
    return text
