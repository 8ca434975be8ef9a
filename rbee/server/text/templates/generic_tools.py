"""Tools, calls and results as plain text, for a chat template that does not show them.

Owns that text. It is the form of Nous Research's Hermes models, which many others were trained on: tools in a system
message, calls between <tool_call> and </tool_call>, results between <tool_response> and </tool_response>. Does not know
how an answer is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee.server.text.templates.engine import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.text.templates.abilities import Abilities

Message = dict[str, Any]

_INTRODUCTION = """\
You can call functions that give you information or do something for the user. Here they are, one JSON object a line:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments as JSON:
{call}"""
_CALL = "<tool_call>\n{call}\n</tool_call>"
_RESULT = "<tool_response>\n{result}\n</tool_response>"
_EXAMPLE = '{"name": "the function\'s name", "arguments": {"an argument\'s name": "its value"}}'
_GRANITE_TAG = "<|tool_call|>"  # its templates name it, and show no calls
_LFM2_MARKS = ("<|tool_list_start|>", "List of tools: [")  # of LFM2 and LFM2.5, whose templates show no calls either
_LFM2_CALLS = "<|tool_call_start|>[{calls}]<|tool_call_end|>"
_PYTHON = {True: "True", False: "False", None: "None"}


def with_generic_tools(
    messages: list[Message], tools: Sequence[Message], abilities: Abilities, source: str
) -> list[Message]:
    """The messages, with all that the template of this `source` leaves out as text of others.

    Args:
        messages: as the template takes them.
        tools: also; all that are offered.
        abilities: of the template.
        source: of the template.
    """
    if not abilities.shows_calls:
        messages = [_with_calls_as_text(message, source) for message in messages]
    if not abilities.shows_results and any(message["role"] == "tool" for message in messages):
        messages = _with_results_of_user(messages)
    if tools and not abilities.shows_tools:
        messages = _with_introduction(messages, tools, abilities)
    return messages


def _with_calls_as_text(message: Message, source: str) -> Message:
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    if any(mark in source for mark in _LFM2_MARKS):
        shown = [_LFM2_CALLS.format(calls=", ".join(map(_in_python, functions)))]
    elif _GRANITE_TAG in source:
        shown = [f"{_GRANITE_TAG}[{', '.join(map(to_json, functions))}]"]
    else:
        shown = [_CALL.format(call=to_json(function)) for function in functions]
    text = "\n".join([message["content"], *shown] if message["content"] else shown)
    return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": text}


def _in_python(function: Message) -> str:
    """A call as LFM2 writes it: name(key="value")."""
    arguments = ", ".join(f"{key}={_literal(value)}" for key, value in function["arguments"].items())
    return f"{function['name']}({arguments})"


def _literal(value: Any) -> str:
    """A value in Python's words; strings have double quotes."""
    match value:
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case dict():
            return f"{{{', '.join(f'{_literal(key)}: {_literal(item)}' for key, item in value.items())}}}"
        case bool() | None:
            return _PYTHON[value]
        case _:
            return to_json(value)


def _with_results_of_user(messages: list[Message]) -> list[Message]:
    """Results are the user's; what the user says behind them is in the same message, as templates want turns."""
    result: list[Message] = []
    after_results = False
    for message in messages:
        is_result = message["role"] == "tool"
        text = _RESULT.format(result=message["content"]) if is_result else message["content"]
        if after_results and (is_result or message["role"] == "user"):
            result[-1] = result[-1] | {"content": f"{result[-1]['content']}\n{text}"}
        elif is_result:
            result.append({"role": "user", "content": text})
        else:
            result.append(message)
        after_results = is_result
    return result


def _with_introduction(messages: list[Message], tools: Sequence[Message], abilities: Abilities) -> list[Message]:
    """What the tools are stands in the system message, or before the first message if there can be none."""
    call = abilities.example_call if abilities.shows_calls else _CALL.format(call=_EXAMPLE)
    text = _INTRODUCTION.format(tools="\n".join(map(to_json, tools)), call=call)
    first, *rest = messages
    if abilities.shows_system and first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": text}, *messages]
    in_front = [first["content"], text] if first["role"] in ("system", "developer") else [text, first["content"]]
    shown = [part for part in in_front if part is not None]  # a turn of calls alone has no text
    return [first | {"content": "\n\n".join(shown)}, *rest]
