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
    FORMER_MESSAGE,
    NEUTRAL_MESSAGE,
    REASONING_MESSAGE,
    Message,
    Part,
)
from rbee.server.protocols.openai.tools import read_calls, refuse_former
from rbee.server.protocols.tools import Calls

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


def read_messages(
    given: list[dict[str, Any]], reader: FieldReader, *, shows_reasoning: bool = False
) -> list[dict[str, Any]]:
    """Messages as `ChatTemplate.render` takes them.

    With `shows_reasoning` the assistant's reasoning is among them, else it is listed as not followed.
    """
    calls = Calls()
    advisory = ADVISORY_MESSAGE - REASONING_MESSAGE if shows_reasoning else ADVISORY_MESSAGE
    return [_read_message(message, reader, f"messages[{n}]", advisory, calls) for n, message in enumerate(given)]


def _read_message(
    given: dict[str, Any], reader: FieldReader, path: str, advisory: frozenset[str], calls: Calls
) -> dict[str, Any]:
    refuse_former(given, FORMER_MESSAGE, f"{path}.")
    message = reader.read(given, Message, NEUTRAL_MESSAGE, f"{path}.", advisory=advisory)
    if message.role != "tool":
        calls.close()
        _only_of("tool", message.role, "tool_call_id", message.tool_call_id, path)
    if message.role != "assistant":
        _only_of("assistant", message.role, "tool_calls", message.tool_calls, path)
    read: dict[str, Any] = {"role": message.role, "content": _text(message, reader, path)}
    match message.role:
        case "system" | "user" | "developer":
            pass
        case "assistant":
            read |= _of_assistant(message, reader, path, calls, shows_reasoning="reasoning" not in advisory)
        case "tool":
            read |= _of_tool(message, path, calls)
        case "function":
            remedy = "send the result with the role tool and the tool_call_id of its call"
            raise invalid(
                f"{path}.role",
                f"{path}.role is 'function', a former role of OpenAI's; {remedy}.",
                code="unsupported_parameter",
            )
        case role:
            roles = "system, developer, user, assistant or tool"
            raise invalid(f"{path}.role", f"{path}.role must be {roles}, not {role[:64]!r}.")
    return read if message.name is None else read | {"name": message.name}


def _only_of(owner: str, role: str, field: str, value: Any, path: str) -> None:
    if value:
        param = f"{path}.{field}"
        raise invalid(param, f"{param} may only be set where the role is {owner}, not {role[:64]!r}.")


def _of_assistant(
    message: Message, reader: FieldReader, path: str, calls: Calls, *, shows_reasoning: bool
) -> dict[str, Any]:
    """Calls, and what the model thought before them, if there are any."""
    read: dict[str, Any] = {}
    if message.tool_calls:
        read["tool_calls"] = read_calls(message.tool_calls, reader, f"{path}.tool_calls", calls)
    if shows_reasoning:
        for name in ("reasoning_content", "reasoning"):
            text = getattr(message, name)
            if isinstance(text, str) and text:
                return read | {"reasoning": text}
            if text:
                reader.ignored.append(f"{path}.{name}")
    return read


def _of_tool(message: Message, path: str, calls: Calls) -> dict[str, Any]:
    """Which call it is the result of."""
    param = f"{path}.tool_call_id"
    if message.tool_call_id is None:
        raise invalid(param, f"{param} is missing: the id of the call whose result this is.", code="missing_parameter")
    name = calls.answer(message.tool_call_id, param)
    return {"tool_call_id": message.tool_call_id, "name": name}


def _text(message: Message, reader: FieldReader, path: str) -> str | None:
    """A message's content as one string; the texts of several parts are joined by line breaks.

    An assistant's turn may have none: one that only calls tools has null then, as templates take it.
    """
    if message.content is None:
        if message.role == "assistant":
            return None if message.tool_calls else ""
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
