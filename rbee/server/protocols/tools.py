"""What all protocols ask of tools, calls and results, whatever they call the fields.

Owns the bounds, and that a result follows its call. Does not know the fields of a protocol: it gets their paths, for
refusals.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from rbee.server.errors import invalid
from rbee.server.protocols.fields import decode_value
from rbee.server.protocols.json_shape import UNCOUNTED_BYTES, check_shape
from rbee.server.text.tool_use import ToolCall, ToolUse

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rbee.server.text.output.tools import Tool

MAX_TOOLS = 512
MAX_NAME = 128  # Anthropic's bound, the wider one
MAX_ID = 256  # characters of a call's id
MAX_DEPTH = 64  # of a schema, of arguments, and of what else goes to a chat template
_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{MAX_NAME}}}")


def check_function(kind: Any, param: str) -> None:
    """Raise Refusal unless a tool, a call or a choice is of a function; an absent type is named elsewhere."""
    if kind not in (None, "function"):
        message = f"{param} is {str(kind)[:64]!r}; it must be 'function': this server runs no tools of its own."
        raise invalid(param, message, code="unsupported_parameter")


def read_mode(mode: str | None, param: str) -> Literal["auto", "required"]:
    """Whether one of some allowed tools must be called."""
    match mode:
        case "auto" | "required":
            return mode
    raise invalid(param, f"{param} must be 'auto' or 'required', not {str(mode)[:64]!r}.")


def check_name(name: str, param: str) -> None:
    """Raise Refusal unless a tool may be called so."""
    if not _NAME.fullmatch(name):
        possible = f"1 to {MAX_NAME} letters, digits, underscores or dashes"
        raise invalid(param, f"{param} is {name[:MAX_NAME]!r}; it must have {possible}.")


def check_absent(value: Any, param: str, kind: str) -> None:
    """Raise Refusal for a field of a choice that one of this type has no place for."""
    if value is not None:
        raise invalid(param, f"{param} has no meaning where the type is {kind[:64]!r}; leave it out.")


def check_parameters(schema: dict[str, Any], param: str) -> None:
    """Raise Refusal unless a schema can be one of a function's arguments."""
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise invalid(f"{param}.type", f"{param}.type must be 'object', not {str(kind)[:64]!r}: arguments have names.")
    check_depth(schema, param)


def check_depth(value: Any, param: str) -> None:
    """Raise Refusal for a value of more than MAX_DEPTH lists and objects in each other."""
    inner = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [
            item
            for outer in inner
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not inner:
            return
    raise invalid(param, f"{param} is nested more than {MAX_DEPTH} deep; flatten it.")


def check_tools(tools: Sequence[Tool], name_of: str) -> None:
    """Raise Refusal for too many tools, or two of one name; `name_of` is the path of a name, with {} for its number."""
    if len(tools) > MAX_TOOLS:
        raise invalid("tools", f"tools holds {len(tools)} tools; at most {MAX_TOOLS} are possible.")
    numbers: dict[str, int] = {}
    for number, tool in enumerate(tools):
        first = numbers.setdefault(tool.name, number)
        if first != number:
            param = name_of.format(number)
            raise invalid(param, f"{param} is {tool.name!r}, as {name_of.format(first)} is; rename one of them.")


def use_of(
    tools: tuple[Tool, ...],
    choice: Literal["none", "auto", "required"],
    *,
    parallel: bool,
    names: Collection[str] | None = None,
    param: str = "tool_choice",
) -> ToolUse:
    """How tools are used.

    With "none", or if none of them may be called, the prompt shows no tools: a model that does not see them calls none.

    Args:
        tools: all of the request.
        choice: whether the answer calls some.
        parallel: it may call several.
        names: those that may be called, if not all.
        param: where `names` stand.

    Raises:
        Refusal: a name is of no tool, or there are none that could be called.
    """
    if choice == "none":
        return ToolUse(parallel=parallel)
    known = {tool.name for tool in tools}
    for name in names or ():
        if name not in known:
            raise invalid(param, f"{param} names {name[:MAX_NAME]!r}, which is none of tools.")
    callable_tools = tools if names is None else tuple(tool for tool in tools if tool.name in names)
    if callable_tools:
        return ToolUse(tools, callable_tools, choice, parallel)
    if choice == "required" and tools:
        raise invalid(param, f"{param} is empty, but tool_choice asks for a call; name at least one of tools.")
    if choice == "required":
        raise invalid("tool_choice", "tool_choice asks for a call, but there are no tools; send tools.")
    return ToolUse(parallel=parallel)


class Calls:
    """The calls of a conversation, read one after the other; those of a turn are open until their results are read.

    Arguments that are JSON text hold together about as much as a request may: a decoder takes long for more.
    """

    def __init__(self) -> None:
        self._open: dict[str, str] = {}  # id to name
        self._answered: set[str] = set()
        self._texts: list[str] = []  # of arguments
        self._length = 0  # of all of them, in characters
        self._next_count = UNCOUNTED_BYTES  # the length at which they are counted again

    def read(self, call_id: str, name: str, arguments: str, path: str, fields: tuple[str, str, str]) -> ToolCall:
        """A call whose arguments are JSON text; empty text is an empty object, as some models write it.

        `fields` are the paths of id, name and arguments within `path`.

        Raises:
            Refusal: an id or a name is not possible, or the arguments are no JSON object.
        """
        of_id, of_name, of_arguments = (f"{path}.{field}" for field in fields)
        self.add(call_id, name, of_id, of_name)
        text = arguments if arguments.strip() else "{}"
        self._count(text)
        value = decode_value(text, of_arguments)
        if not isinstance(value, dict):
            raise invalid(of_arguments, f"{of_arguments} must be the JSON text of an object.")
        check_depth(value, of_arguments)
        return ToolCall(call_id, name, value, text)

    def add(self, call_id: str, name: str, of_id: str, of_name: str) -> None:
        """A call with this id and this name is open. Raises Refusal, with their paths, unless it can be."""
        check_name(name, of_name)
        if not 1 <= len(call_id) <= MAX_ID:
            raise invalid(of_id, f"{of_id} must have 1 to {MAX_ID} characters, not {len(call_id)}.")
        if call_id in self._open:
            raise invalid(of_id, f"{of_id} is {call_id!r}, as another call of this turn is; give each its own id.")
        self._open[call_id] = name

    def close(self) -> None:
        """Some other message: no results follow any more."""
        self._open, self._answered = {}, set()

    def answer(self, call_id: str, param: str) -> str:
        """The name of the call that has this result. Raises Refusal if none is waiting for it."""
        if call_id not in self._open:
            shown = ", ".join(repr(known) for known in self._open)
            reason = f"which has {shown}" if shown else "and what is before this one has no calls"
            message = f"{param} is {call_id!r}; results come right behind the turn with their calls, {reason}."
            raise invalid(param, message)
        if call_id in self._answered:
            raise invalid(param, f"{param} is {call_id!r}, which has its result already; send one for each call.")
        self._answered.add(call_id)
        return self._open[call_id]

    def _count(self, text: str) -> None:
        self._texts.append(text)
        self._length += len(text)
        if self._length > self._next_count:
            check_shape(",".join(self._texts).encode(errors="surrogatepass"))
            self._next_count = 2 * self._length
