"""Messages and tools in the form that a chat template takes.

Owns where that form differs from one template to another: it changes what a template would fail on or leave out, and
nothing else, so that the prompt is the one that transformers makes. Does not know special tokens.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rbee.server.text.output.tools import Tool
    from rbee.server.text.templates.abilities import Abilities
    from rbee.server.text.tool_use import ToolCall

Message = dict[str, Any]

_ADAPTED = frozenset({"tool_calls", "tool_call_id", "reasoning"})
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_NO_PARAMETERS = {"type": "object", "properties": {}}


def adapted_tools(tools: Iterable[Tool], abilities: Abilities) -> list[Message]:
    """As transformers' get_json_schema writes them; `strict` is no word of a prompt."""
    return [_adapted_tool(tool, abilities) for tool in tools]


def _adapted_tool(tool: Tool, abilities: Abilities) -> Message:
    function: Message = {"name": tool.name}
    if tool.description is not None or abilities.needs_description:
        function["description"] = tool.description or ""
    return {"type": "function", "function": function | {"parameters": tool.parameters or _NO_PARAMETERS}}


def adapted_messages(messages: Sequence[Message], abilities: Abilities) -> list[Message]:
    """The messages for the template; those that `ChatTemplate.render` gets."""
    if not abilities.shows_system:
        messages = _with_system_of_user(messages)
    if all(message.keys().isdisjoint(_ADAPTED) for message in messages):
        return list(messages)
    if abilities.shows_calls and not abilities.parallel_calls:
        messages = list(_one_by_one(messages))
    return [_adapted(part, abilities) for message in messages for part in _parted(message, abilities)]


def _with_system_of_user(messages: Sequence[Message]) -> list[Message]:
    """What system messages say stands in front of the user's next message, or is the user's last one."""
    result: list[Message] = []
    held: list[str] = []
    for message in messages:
        if message["role"] == "system":
            held.append(message["content"])
        elif held and message["role"] == "user":
            result.append(message | {"content": "\n\n".join([*held, message["content"]])})
            held = []
        else:
            result.append(message)
    return [*result, {"role": "user", "content": "\n\n".join(held)}] if held else result


def _one_by_one(messages: Sequence[Message]) -> Iterator[Message]:
    """A turn with several calls as several turns with one, each with its result behind it."""
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        calls: list[ToolCall] = message.get("tool_calls", [])
        if len(calls) < 2:
            yield message
            continue
        results = {}
        while position < len(messages) and messages[position]["role"] == "tool":
            results[messages[position]["tool_call_id"]] = messages[position]
            position += 1
        turn = message
        for call in calls:
            yield turn | {"tool_calls": [call]}
            if call.id in results:
                yield results[call.id]
            turn = {"role": "assistant", "content": None}


def _parted(message: Message, abilities: Abilities) -> Iterator[Message]:
    """The message, or its text and its calls as two, if the template would leave one out."""
    calls = message.get("tool_calls")
    reasoned = abilities.reasoning_field and message.get("reasoning")
    together = abilities.text_beside_reasoned_calls if reasoned else abilities.text_beside_calls
    if not calls or not message["content"] or together or not abilities.shows_calls:
        yield message
        return
    yield {"role": "assistant", "content": message["content"]}
    yield message | {"content": None}


def _adapted(message: Message, abilities: Abilities) -> Message:
    result = {name: value for name, value in message.items() if name != "reasoning"}
    if abilities.reasoning_field and "reasoning" in message:
        result[abilities.reasoning_field] = message["reasoning"]
    if "tool_call_id" in message:
        result["tool_call_id"] = _id(message["tool_call_id"], abilities)
    if "tool_calls" not in message:
        return result
    result["tool_calls"] = [_adapted_call(call, abilities) for call in message["tool_calls"]]
    if message["content"] is None and not abilities.takes_null:
        result["content"] = ""
    elif message["content"] == "" and not abilities.takes_empty:
        result["content"] = None
    return result


def _adapted_call(call: ToolCall, abilities: Abilities) -> Message:
    arguments = call.text if abilities.arguments_as_text else call.arguments
    function = {"name": call.name, "arguments": arguments}
    return {"id": _id(call.id, abilities), "type": "function", "function": function}


def _id(given: str, abilities: Abilities) -> str:
    """An id as the template takes it: the same for a call and its result, in every turn."""
    if abilities.takes_long_ids or _SHORT_ID.fullmatch(given):
        return given
    return hashlib.blake2b(given.encode(errors="surrogatepass")).hexdigest()[:9]
