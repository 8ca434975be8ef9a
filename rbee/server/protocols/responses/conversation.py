"""From the instructions and input items of a Responses request to messages as chat templates want them.

Owns how items become messages: what the model thought, said and called in one turn is one of them. Does not know
tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from rbee.server.errors import invalid
from rbee.server.protocols.responses.schemas import (
    ADVISORY_CALL_ITEM,
    ADVISORY_ITEM,
    ADVISORY_OUTPUT_ITEM,
    ADVISORY_PART,
    ADVISORY_REASONING_ITEM,
    FunctionCall,
    FunctionCallOutput,
    Item,
    ReasoningItem,
    TextPart,
)
from rbee.server.protocols.tools import Calls

if TYPE_CHECKING:
    from rbee.server.protocols.fields import FieldReader

Message = dict[str, Any]

_ROLES = ("user", "system", "developer", "assistant")
_PARTS = ("input_text", "output_text")
_REASONING_PARTS = ("reasoning_text", "summary_text")
_TOOLS = ("_call", "_call_output", "_tools", "_tool")  # how the types of items of other tools end


def read_input(
    instructions: str | None,
    given: str | list[dict[str, Any]],
    reader: FieldReader,
    *,
    shows_reasoning: bool = False,
) -> list[Message]:
    """The messages of a conversation, as `ChatTemplate.render` takes them; the instructions come first.

    With `shows_reasoning` what the model thought is among them, else it is listed as not followed.

    Raises:
        Refusal: there is no item, or one that cannot be read; it names the field.
    """
    messages: list[Message] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not given:
        raise invalid("input", "input must be a text, or hold at least one item.")
    items = _Items(reader, shows_reasoning=shows_reasoning)
    for number, item in enumerate(given):
        items.add(item, f"input[{number}]")
    return messages + items.finish()


class _Items:
    """The messages of the items so far."""

    def __init__(self, reader: FieldReader, *, shows_reasoning: bool) -> None:
        self._reader = reader
        self._shows_reasoning = shows_reasoning
        self._calls = Calls()
        self._turn: Message | None = None  # of the assistant, if further items may belong to it
        self._messages: list[Message] = []

    def add(self, given: dict[str, Any], path: str) -> None:
        match given.get("type"):
            case None | "message":
                self._add_message(given, path)
            case "function_call":
                self._add_call(given, path)
            case "function_call_output":
                self._add_result(given, path)
            case "reasoning":
                self._add_reasoning(given, path)
            case kind:
                _refuse_item(kind, f"{path}.type")

    def finish(self) -> list[Message]:
        """All of them."""
        self._end_turn()
        return self._messages

    def _add_message(self, given: dict[str, Any], path: str) -> None:
        item = self._reader.read(given, Item, {}, f"{path}.", advisory=ADVISORY_ITEM)
        if item.role not in _ROLES:
            raise invalid(f"{path}.role", f"{path}.role must be one of {', '.join(_ROLES)}, not {item.role[:64]!r}.")
        text = "\n".join(_texts(item.content, self._reader, f"{path}.content"))
        turn = self._turn
        if item.role != "assistant":
            self._end_turn()
            self._messages.append({"role": item.role, "content": text})
        elif turn is not None and (turn["content"] is None or "tool_calls" in turn):
            turn["content"] = _joined(turn["content"], text)
        else:
            self._begin_turn(text)

    def _add_call(self, given: dict[str, Any], path: str) -> None:
        item = self._reader.read(given, FunctionCall, {}, f"{path}.", advisory=ADVISORY_CALL_ITEM)
        turn = self._turn if self._turn is not None else self._begin_turn(None)
        call = self._calls.read(item.call_id, item.name, item.arguments, path, ("call_id", "name", "arguments"))
        turn.setdefault("tool_calls", []).append(call)

    def _add_result(self, given: dict[str, Any], path: str) -> None:
        item = self._reader.read(given, FunctionCallOutput, {}, f"{path}.", advisory=ADVISORY_OUTPUT_ITEM)
        name = self._calls.answer(item.call_id, f"{path}.call_id")
        text = "\n".join(_texts(item.output, self._reader, f"{path}.output"))
        self._turn = None
        self._messages.append({"role": "tool", "content": text, "tool_call_id": item.call_id, "name": name})

    def _add_reasoning(self, given: dict[str, Any], path: str) -> None:
        item = self._reader.read(given, ReasoningItem, {}, f"{path}.", advisory=ADVISORY_REASONING_ITEM)
        name = "content" if item.content else "summary"
        texts = _texts(getattr(item, name), self._reader, f"{path}.{name}", _REASONING_PARTS)
        if not texts:
            return
        if not self._shows_reasoning:
            self._reader.ignored.append(f"{path}.{name}")
            return
        turn = self._turn
        if turn is None or (turn["content"] is not None and "tool_calls" not in turn):
            turn = self._begin_turn(None)
        turn["reasoning"] = _joined(turn.get("reasoning"), "\n".join(texts))

    def _begin_turn(self, text: str | None) -> Message:
        """A turn of the assistant that has said this so far."""
        self._end_turn()
        self._turn = {"role": "assistant", "content": text}
        self._messages.append(self._turn)
        return self._turn

    def _end_turn(self) -> None:
        self._calls.close()
        if self._turn is not None and self._turn["content"] is None and "tool_calls" not in self._turn:
            self._turn["content"] = ""  # it has only thought
        self._turn = None


def _joined(before: str | None, text: str) -> str:
    return text if before is None else f"{before}\n{text}"


def _texts(
    content: str | list[dict[str, Any]], reader: FieldReader, path: str, kinds: tuple[str, ...] = _PARTS
) -> list[str]:
    """The texts of the parts."""
    if isinstance(content, str):
        return [content]
    texts = []
    for number, given in enumerate(content):
        where = f"{path}[{number}]"
        kind = given.get("type")
        if kind not in kinds:
            message = f"{where}.type must be {kinds[0]!r} or {kinds[1]!r}, not {str(kind)[:64]!r}: this model reads "
            raise invalid(f"{where}.type", f"{message}text only.")
        texts.append(reader.read(given, TextPart, {}, f"{where}.", advisory=ADVISORY_PART).text)
    return texts


def _refuse_item(kind: Any, param: str) -> NoReturn:
    shown = str(kind)[:64]
    if kind == "item_reference":
        reason = "this server stores no items. Send the item itself."
    elif shown.endswith(_TOOLS):
        reason = "this server knows calls of functions only (function_call, function_call_output)."
    else:
        possible = "'message', 'function_call', 'function_call_output' or 'reasoning'"
        raise invalid(param, f"{param} must be {possible}, not {shown!r}.")
    raise invalid(param, f"{param} is {shown!r}: {reason}", code="unsupported_parameter")
