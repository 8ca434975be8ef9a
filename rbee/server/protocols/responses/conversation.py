"""From the instructions and input items of a Responses request to messages as chat templates want them.

Owns how parts become one text. Does not know tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from rbee.server.errors import invalid
from rbee.server.protocols.responses.schemas import ADVISORY_ITEM, ADVISORY_PART, Item, TextPart

if TYPE_CHECKING:
    from rbee.server.protocols.fields import FieldReader

_ROLES = ("user", "system", "developer", "assistant")
_PARTS = ("input_text", "output_text")
_REASONING = ("reasoning", "reasoning_text", "summary_text")
_TOOLS = ("_call", "_call_output", "_tools", "_tool")  # how the types of items of tools end


def read_input(
    instructions: str | None, given: str | list[dict[str, Any]], reader: FieldReader
) -> list[dict[str, Any]]:
    """The messages of a conversation, each with role and content; the instructions come first.

    Raises:
        Refusal: there is no item, or one that cannot be read; it names the field.
    """
    messages = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not given:
        raise invalid("input", "input must be a text, or hold at least one item.")
    return messages + [_read_item(item, reader, f"input[{number}]") for number, item in enumerate(given)]


def _read_item(given: dict[str, Any], reader: FieldReader, path: str) -> dict[str, Any]:
    kind = given.get("type")
    if kind not in (None, "message"):
        _refuse_item(kind, f"{path}.type")
    item = reader.read(given, Item, {}, f"{path}.", advisory=ADVISORY_ITEM)
    if item.role not in _ROLES:
        raise invalid(f"{path}.role", f"{path}.role must be one of {', '.join(_ROLES)}, not {item.role[:64]!r}.")
    return {"role": item.role, "content": _text(item.content, reader, f"{path}.content")}


def _text(content: str | list[dict[str, Any]], reader: FieldReader, path: str) -> str:
    """The texts of several parts are joined by line breaks."""
    if isinstance(content, str):
        return content
    texts = []
    for number, given in enumerate(content):
        where = f"{path}[{number}]"
        kind = given.get("type")
        if kind not in _PARTS:
            message = f"{where}.type must be 'input_text' or 'output_text', not {str(kind)[:64]!r}: this model reads "
            raise invalid(f"{where}.type", f"{message}text only.")
        texts.append(reader.read(given, TextPart, {}, f"{where}.", advisory=ADVISORY_PART).text)
    return "\n".join(texts)


def _refuse_item(kind: Any, param: str) -> NoReturn:
    shown = str(kind)[:64]
    if kind == "item_reference":
        reason = "this server stores no items. Send the item itself."
    elif shown in _REASONING:
        reason = "reasoning is not supported yet."
    elif shown.endswith(_TOOLS):
        reason = "tools are not supported yet."
    else:
        raise invalid(param, f"{param} must be 'message', not {shown!r}.")
    raise invalid(param, f"{param} is {shown!r}: {reason}", code="unsupported_parameter")
