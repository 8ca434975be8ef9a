"""From Anthropic's system prompt, turns and blocks to messages as chat templates want them.

Owns how blocks and turns become messages, and what of a system prompt is left out. Does not know tokens.
"""

from __future__ import annotations

import itertools
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.server.errors import invalid
from rbee.server.protocols.anthropic.schemas import (
    ADVISORY_BLOCK,
    ADVISORY_THINKING_BLOCK,
    ADVISORY_TOOL_BLOCK,
    ADVISORY_TURN,
    NEUTRAL_TURN,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from rbee.server.protocols.tools import Calls, check_depth
from rbee.server.text.templates.engine import to_json
from rbee.server.text.tool_use import ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rbee.server.errors import Refusal
    from rbee.server.protocols.fields import FieldReader

Message = dict[str, Any]

# Claude Code writes this line for Anthropic's billing. It changes with each request, and no prefix would be cached.
_BILLING_LINE = re.compile(r"^x-anthropic-billing-header:.*(?:\n|\Z)", re.IGNORECASE | re.MULTILINE)
_ROLES = ("user", "assistant", "system")
_TOOLS = ("tool_use", "tool_result")  # how the kinds of their blocks end, those of Anthropic's own tools too
_FAILED = "Error: "  # before the result of a call that failed: chat templates have no other word for it


class _Part(NamedTuple):
    """What a block says."""

    role: str  # of the message that it belongs to
    text: str | None = None
    thought: str | None = None
    call: ToolCall | None = None
    result_of: tuple[str, str] | None = None  # the id and the name of a call


def read_conversation(
    system: str | list[dict[str, Any]],
    turns: list[dict[str, Any]],
    reader: FieldReader,
    *,
    shows_reasoning: bool = False,
) -> list[Message]:
    """The messages of a conversation, as `ChatTemplate.render` takes them; the system prompt comes first.

    Turns in a row of one role are one message, as in Anthropic's API: many chat templates want the roles to alternate.
    Each result of a call is a message. With `shows_reasoning` what the model thought is among them, else it is listed
    as not followed.

    Raises:
        Refusal: there are no turns, or something in them cannot be read; it names the field.
    """
    if not turns:
        raise invalid("messages", "messages must hold at least one message.")
    instructions = [_BILLING_LINE.sub("", text) for text in _texts(system, reader, "system")]
    parts = [_Part("system", text) for text in instructions if text]
    blocks = _Blocks(reader, shows_reasoning=shows_reasoning)
    for number, given in enumerate(turns):
        parts += blocks.read_turn(given, f"messages[{number}]")
    return list(_messages(parts))


def continues_last(messages: list[Message]) -> bool:
    """Whether the model goes on with the last message, instead of answering it: an assistant's is a prefill."""
    return bool(messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1])


def _messages(parts: Iterable[_Part]) -> Iterator[Message]:
    for role, group in itertools.groupby(parts, key=attrgetter("role")):
        of_role = list(group)
        if role == "tool":
            for part in of_role:
                call_id, name = part.result_of or ("", "")
                yield {"role": role, "content": part.text, "tool_call_id": call_id, "name": name}
            continue
        texts = [part.text for part in of_role if part.text is not None]
        calls = [part.call for part in of_role if part.call is not None]
        thoughts = [part.thought for part in of_role if part.thought is not None]
        message: Message = {"role": role, "content": None if calls and not texts else "\n".join(texts)}
        if calls:
            message["tool_calls"] = calls
        if thoughts:
            message["reasoning"] = "\n".join(thoughts)
        yield message


class _Blocks:
    """Reads turns and their blocks, one after the other."""

    def __init__(self, reader: FieldReader, *, shows_reasoning: bool) -> None:
        self._reader = reader
        self._shows_reasoning = shows_reasoning
        self._calls = Calls()
        self._role = ""  # of the last part

    def read_turn(self, given: dict[str, Any], path: str) -> list[_Part]:
        """What a turn says; one that has no blocks is an empty text."""
        turn = self._reader.read(given, Turn, NEUTRAL_TURN, f"{path}.", advisory=ADVISORY_TURN)
        if turn.role not in _ROLES:
            raise invalid(f"{path}.role", f"{path}.role must be one of {', '.join(_ROLES)}, not {turn.role[:64]!r}.")
        if isinstance(turn.content, str):
            return [self._part(turn.role, turn.content)]
        parts = []
        for number, block in enumerate(turn.content):
            parts += self._read_block(block, turn.role, f"{path}.content[{number}]")
        return parts or [self._part(turn.role, "")]

    def _read_block(self, given: dict[str, Any], role: str, path: str) -> list[_Part]:
        kind = given.get("type")
        match kind, role:
            case "text", _:
                return [self._part(role, _text(given, self._reader, path))]
            case "thinking" | "redacted_thinking", "assistant":
                return self._thinking(given, path)
            case "tool_use", "assistant":
                return [self._tool_use(given, path)]
            case "tool_result", "user":
                return [self._tool_result(given, path)]
            case "thinking" | "redacted_thinking" | "tool_use" | "tool_result", _:
                owner = "a user" if kind == "tool_result" else "an assistant"
                raise invalid(f"{path}.type", f"{path}.type is {kind!r}, which stands in {owner}'s turn only.")
        raise _unreadable(kind, path)

    def _part(self, role: str, text: str | None = None, **said: Any) -> _Part:
        """What a block says; results follow calls without anything else between them."""
        if role not in (self._role, "tool"):
            self._calls.close()
        self._role = role
        return _Part(role, text, **said)

    def _thinking(self, given: dict[str, Any], path: str) -> list[_Part]:
        where = f"{path}."
        if given["type"] == "redacted_thinking":
            self._reader.read(given, RedactedThinkingBlock, {}, where, advisory=ADVISORY_THINKING_BLOCK)
            return []
        block = self._reader.read(given, ThinkingBlock, {}, where, advisory=ADVISORY_THINKING_BLOCK)
        if self._shows_reasoning:
            return [self._part("assistant", thought=block.thinking)] if block.thinking else []
        self._reader.ignored.append(f"{path}.thinking")
        return []

    def _tool_use(self, given: dict[str, Any], path: str) -> _Part:
        block = self._reader.read(given, ToolUseBlock, {}, f"{path}.", advisory=ADVISORY_TOOL_BLOCK)
        check_depth(block.input, f"{path}.input")
        call = ToolCall(block.id, block.name, block.input, to_json(block.input))
        part = self._part("assistant", call=call)
        self._calls.add(block.id, block.name, f"{path}.id", f"{path}.name")
        return part

    def _tool_result(self, given: dict[str, Any], path: str) -> _Part:
        block = self._reader.read(given, ToolResultBlock, {}, f"{path}.", advisory=ADVISORY_TOOL_BLOCK)
        name = self._calls.answer(block.tool_use_id, f"{path}.tool_use_id")
        text = "\n".join(_texts(block.content, self._reader, f"{path}.content"))
        return self._part("tool", _FAILED + text if block.is_error else text, result_of=(block.tool_use_id, name))


def _texts(content: str | list[dict[str, Any]], reader: FieldReader, path: str) -> list[str]:
    """The text of each block, of which none may be of another kind."""
    if isinstance(content, str):
        return [content]
    texts = []
    for number, given in enumerate(content):
        where = f"{path}[{number}]"
        if given.get("type") != "text":
            raise _unreadable(given.get("type"), where)
        texts.append(_text(given, reader, where))
    return texts


def _text(given: dict[str, Any], reader: FieldReader, path: str) -> str:
    return reader.read(given, TextBlock, {}, f"{path}.", advisory=ADVISORY_BLOCK).text


def _unreadable(kind: Any, where: str) -> Refusal:
    """Of a block of this kind."""
    param = f"{where}.type"
    shown = str(kind)[:64]
    if shown.endswith(_TOOLS):
        reason = "this server runs no tools, and knows tool_use and tool_result of those that the client runs only"
        return invalid(param, f"{param} is {shown!r}; {reason}.", code="unsupported_parameter")
    return invalid(param, f"{param} must be 'text', not {shown!r}: this model reads text only.")
