"""What a chat template shows of tools, calls, results and reasoning, found out by small conversations that it renders.

Owns those conversations and what follows from their texts. Templates say nowhere what they can do; some fail on what
they do not know, others leave it out. Does not know the messages of a request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Message = dict[str, Any]

# What is looked for in a text. No template has these words of its own.
_TOOL, _CALL, _OTHER_CALL = "qxtool", "qxcall", "qxother"
_KEY, _VALUE = "qxkey", "qxvalue"
_TEXT, _RESULT, _THOUGHT, _SYSTEM = "qxtext", "qxresult", "qxthought", "qxsystem"

_ID, _OTHER_ID = "qxid00001", "qxid00002"  # of nine letters and digits, as the strictest templates want them
_LONG_ID = "call_0123456789abcdef01234567"
_ARGUMENTS = {_KEY: _VALUE}
_USER = {"role": "user", "content": "Hi"}
_PARAMETERS = {"type": "object", "properties": {_KEY: {"type": "string", "description": "It."}}, "required": [_KEY]}
_FUNCTION: Message = {"name": _TOOL, "description": "Does it.", "parameters": _PARAMETERS}
_WITHOUT_DESCRIPTION = {"name": _TOOL, "parameters": _PARAMETERS}
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Abilities:
    """What a template does with its input. The defaults are those of one that knows no tools."""

    shows_tools: bool = False
    shows_calls: bool = False  # of earlier turns of the assistant
    shows_results: bool = False
    shows_system: bool = True  # False: it shows what the user says, and leaves system messages out or fails on them
    needs_description: bool = False  # fails on a tool without one
    arguments_as_text: bool = False  # takes them as JSON text, and as an object it shows them wrong or fails
    takes_null: bool = True  # content beside calls may be null
    takes_empty: bool = True  # or ""
    text_beside_calls: bool = True  # a turn with text and calls shows the calls
    text_beside_reasoned_calls: bool = True  # also if it has reasoning
    parallel_calls: bool = True  # a turn with two calls shows both
    takes_long_ids: bool = True  # False: ids have nine letters and digits
    reasoning_field: str | None = None  # of a turn, that is shown
    thinking_switch: str | None = None  # the variable that turns reasoning on and off
    example_call: str = ""  # how a call looks that the model writes; "" if calls are not shown


def find_abilities(render: Callable[[dict[str, Any]], str], end: str = "") -> Abilities:
    """Render small conversations.

    Args:
        render: takes a template's variables, and may raise anything.
        end: the token that ends a turn, no part of a call.
    """
    probe = _Probe(render)
    as_object = probe.takes(lambda content: _turn(content, [_call(_ARGUMENTS)]), "{'" + _KEY)
    text = json.dumps(_ARGUMENTS)
    as_text = probe.takes(lambda content: _turn(content, [_call(text)]), json.dumps(text)[1:-1])
    shows_tools = probe.shows_tool(_FUNCTION)
    field = probe.reasoning_field(None)
    abilities = Abilities(
        shows_tools=shows_tools,
        shows_system=probe.shows_system(),
        needs_description=shows_tools and not probe.shows_tool(_WITHOUT_DESCRIPTION),
        reasoning_field=field,
        thinking_switch=probe.thinking_switch(),
    )
    contents = as_object or as_text
    if not contents:  # one that writes the names of all roles does not know the tool's for that
        shows_results = shows_tools and probe.shows([_USER, _turn(_TEXT), _result(_ID)], _RESULT)
        return replace(abilities, shows_results=shows_results)
    arguments: Any = _ARGUMENTS if as_object else text
    content = contents[0]
    call, other = _call(arguments), _call(arguments, _OTHER_CALL, _OTHER_ID)
    field = field or probe.reasoning_field(content, [call])
    thought = {field: _THOUGHT} if field else {}
    return replace(
        abilities,
        shows_calls=True,
        shows_results=probe.shows([_USER, _turn(content, [call]), _result(_ID)], _RESULT),
        arguments_as_text=not as_object,
        takes_null=None in contents,
        takes_empty="" in contents,
        text_beside_calls=probe.shows([_USER, _turn(_TEXT, [call])], _CALL),
        text_beside_reasoned_calls=probe.shows([_USER, _turn(_TEXT, [call]) | thought], _CALL),
        parallel_calls=probe.shows([_USER, _turn(content, [call, other])], _CALL, _OTHER_CALL),
        takes_long_ids=probe.shows(
            [_USER, _turn(content, [_call(arguments, call_id=_LONG_ID)]), _result(_LONG_ID)], _CALL
        ),
        reasoning_field=field,
        example_call=probe.example([_USER], [_USER, _turn(content, [call])]).removesuffix(end),
    )


class _Probe:
    """Renders, with a tool or without; what fails has no text."""

    def __init__(self, render: Callable[[dict[str, Any]], str]) -> None:
        self._render = render

    def text(self, messages: list[Message], tool: Message | None = None, /, **variables: Any) -> str | None:
        given: dict[str, Any] = {
            "messages": messages,
            "tools": None if tool is None else [{"type": "function", "function": tool}],
            "documents": None,
            "add_generation_prompt": messages[-1]["role"] != "assistant",
        }
        try:
            return self._render(given | variables)
        except Exception:  # noqa: BLE001 - foreign code; that it fails is what is asked
            return None

    def shows(self, messages: list[Message], *words: str) -> bool:
        text = self.text(messages, _FUNCTION)
        return text is not None and all(word in text for word in words)

    def shows_tool(self, function: Message) -> bool:
        return _TOOL in (self.text([_USER], function) or "")

    def shows_system(self) -> bool:
        user = {"role": "user", "content": _TEXT}
        shown = self.text([{"role": "system", "content": _SYSTEM}, user]) or ""
        return _SYSTEM in shown or _TEXT not in (self.text([user]) or "")

    def takes(self, turn: Callable[[str | None], Message], wrong: str) -> list[str | None]:
        """The empty contents with which a turn's call is shown, its arguments not in the `wrong` form."""
        texts = {content: self.text([_USER, turn(content)], _FUNCTION) for content in (None, "")}
        right = {
            content: text
            for content, text in texts.items()
            if text is not None and _CALL in text and _VALUE in text and wrong not in text
        }
        if None in right and "" in right and right[None].count("None") > right[""].count("None"):
            del right[None]  # the template writes the word
        return list(right)

    def reasoning_field(self, content: str | None, calls: list[Message] | None = None) -> str | None:
        """The field of a turn whose reasoning is shown."""
        thoughts = {name: _THOUGHT + name for name in _REASONING_FIELDS}
        turn = _turn(content if calls else _TEXT, calls or []) | thoughts
        text = self.text([_USER, turn], _FUNCTION if calls else None) or ""
        return next((name for name, thought in thoughts.items() if thought in text), None)

    def thinking_switch(self) -> str | None:
        """The variable that changes what a prompt for an answer is."""
        for name in ("enable_thinking", "thinking"):
            if self.text([_USER], **{name: True}) != self.text([_USER], **{name: False}):
                return name
        return None

    def example(self, before: list[Message], after: list[Message]) -> str:
        """What a template writes for the last turn behind the prompt for it, in words that say what stands where."""
        prompt, text = self.text(before, _FUNCTION) or "", self.text(after, _FUNCTION) or ""
        if not text.startswith(prompt):
            return ""
        example = text.removeprefix(prompt)
        for word, meaning in ((_CALL, "function_name"), (_KEY, "argument_name"), (_VALUE, "argument_value")):
            example = example.replace(word, meaning)
        return example


def _turn(content: str | None, calls: list[Message] | None = None) -> Message:
    turn: Message = {"role": "assistant", "content": content}
    return turn | {"tool_calls": calls} if calls else turn


def _call(arguments: Any, name: str = _CALL, call_id: str = _ID) -> Message:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(call_id: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "name": _CALL, "content": _RESULT}
