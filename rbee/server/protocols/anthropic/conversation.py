"""From Anthropic's system prompt, turns and blocks to messages as chat templates want them.

Owns how blocks and turns become one text each, and what of a system prompt is left out. Does not know tokens.
"""

from __future__ import annotations

import itertools
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NoReturn

from rbee.server.errors import invalid
from rbee.server.protocols.anthropic.schemas import (
    ADVISORY_BLOCK,
    ADVISORY_TURN,
    NEUTRAL_TURN,
    TextBlock,
    Turn,
)

if TYPE_CHECKING:
    from rbee.server.protocols.fields import FieldReader

# Claude Code writes this line for Anthropic's billing. It changes with each request, and no prefix would be cached.
_BILLING_LINE = re.compile(r"^x-anthropic-billing-header:.*(?:\n|\Z)", re.IGNORECASE | re.MULTILINE)
_ROLES = ("user", "assistant", "system")
_THINKING = frozenset({"thinking", "redacted_thinking"})
_TOOLS = ("tool_use", "tool_result")  # how the kinds of their blocks end, those of Anthropic's own tools too


def read_conversation(
    system: str | list[dict[str, Any]], turns: list[dict[str, Any]], reader: FieldReader
) -> list[dict[str, Any]]:
    """The messages of a conversation, each with role and content; the system prompt comes first.

    Turns in a row of one role are one message, as in Anthropic's API: many chat templates want the roles to alternate.

    Raises:
        Refusal: there are no turns, or something in them cannot be read; it names the field.
    """
    if not turns:
        raise invalid("messages", "messages must hold at least one message.")
    instructions = [_BILLING_LINE.sub("", text) for text in _texts(system, reader, "system")]
    parts = [("system", text) for text in instructions if text]
    for number, given in enumerate(turns):
        parts += _read_turn(given, reader, f"messages[{number}]")
    return [
        {"role": role, "content": "\n".join([text for _, text in of_role])}
        for role, of_role in itertools.groupby(parts, key=itemgetter(0))
    ]


def continues_last(messages: list[dict[str, Any]]) -> bool:
    """Whether the model goes on with the last message, instead of answering it: an assistant's is a prefill."""
    return bool(messages[-1]["role"] == "assistant")


def _read_turn(given: dict[str, Any], reader: FieldReader, path: str) -> list[tuple[str, str]]:
    """The texts of a turn, each with the role; one that has no blocks is an empty text."""
    turn = reader.read(given, Turn, NEUTRAL_TURN, f"{path}.", advisory=ADVISORY_TURN)
    if turn.role not in _ROLES:
        raise invalid(f"{path}.role", f"{path}.role must be one of {', '.join(_ROLES)}, not {turn.role[:64]!r}.")
    return [(turn.role, text) for text in _texts(turn.content, reader, f"{path}.content") or [""]]


def _texts(content: str | list[dict[str, Any]], reader: FieldReader, path: str) -> list[str]:
    """The text of each block."""
    if isinstance(content, str):
        return [content]
    texts = []
    for number, given in enumerate(content):
        where = f"{path}[{number}]"
        if given.get("type") != "text":
            _refuse_block(given.get("type"), where)
        texts.append(reader.read(given, TextBlock, {}, f"{where}.", advisory=ADVISORY_BLOCK).text)
    return texts


def _refuse_block(kind: Any, where: str) -> NoReturn:
    param = f"{where}.type"
    if not isinstance(kind, str):
        raise invalid(param, f"{param} must be 'text', not {str(kind)[:64]!r}.")
    if kind in _THINKING:
        raise invalid(param, f"{param} is {kind!r}: thinking is not supported yet.", code="unsupported_parameter")
    if kind.endswith(_TOOLS):
        raise invalid(param, f"{param} is {kind[:64]!r}: tools are not supported yet.", code="unsupported_parameter")
    raise invalid(param, f"{param} must be 'text', not {kind[:64]!r}: this model reads text only.")
