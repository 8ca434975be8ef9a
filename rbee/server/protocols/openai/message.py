"""The assistant's message of a chat: text, reasoning and tool calls, whole and in deltas.

Owns their JSON, and what a finish reason becomes if there are calls. Does not know chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rbee.messages import FinishReason
from rbee.server.protocols.call_ids import call_id
from rbee.server.text.output import OutputKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.pieces import Part, Piece

FINISH_NAMES: dict[int, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "deadline",  # ours; the others are OpenAI's words
}

ROLE = b'"role":"assistant","content":null,'  # before the members of a first delta without text
# In deltas of a model that reasons. Clients of DeepSeek and SGLang read the member without asking whether it is there.
NO_REASONING = b'"reasoning_content":null'

_encode = msgspec.json.Encoder().encode
_REASONING = b'"reasoning_content":%b,"reasoning":%b'  # clients know one or the other
_CALL = b'"tool_calls":[{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":""}}]'
_ARGUMENTS = b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]'


def finish_name(reason: int, *, has_calls: bool) -> str:
    """Why a choice ended; also with a `tool_choice` that names a tool there are calls, which clients look for here."""
    return "tool_calls" if has_calls and reason == FinishReason.STOP else FINISH_NAMES[reason]


def delta(answer_id: str, choice: int, piece: Piece, nothing: bytes) -> bytes:
    """The members of a piece's delta, if it is no text. A call has id and name in its first one, and never again.

    `nothing` is the member of a call's delta that says that it is no reasoning, with a comma behind it, or empty.
    """
    text, call = _encode(piece.text), piece.num_calls - 1
    if piece.kind is OutputKind.REASONING:
        return _REASONING % (text, text)
    if piece.kind is OutputKind.TOOL_NAME:
        return nothing + _CALL % (call, _encode(_call_id(answer_id, choice, call)), text)
    return nothing + _ARGUMENTS % (call, text)


def message(answer_id: str, choice: int, parts: Sequence[Part], *, has_reasoning: bool) -> dict[str, Any]:
    """The whole message. `content` is null if there are calls and no text.

    With `has_reasoning` it has the reasoning's members also if there is none: null, as vLLM and SGLang have it.
    """
    text = "".join([part.text for part in parts if part.kind is OutputKind.TEXT])
    reasoning = "".join([part.text for part in parts if part.kind is OutputKind.REASONING])
    calls = [part for part in parts if part.kind is OutputKind.TOOL_ARGUMENTS]
    members: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else text), "refusal": None}
    if reasoning or has_reasoning:
        members |= {"reasoning_content": reasoning or None, "reasoning": reasoning or None}
    if calls:
        members["tool_calls"] = [
            {
                "id": _call_id(answer_id, choice, number),
                "type": "function",
                "function": {"name": call.name, "arguments": call.text},
            }
            for number, call in enumerate(calls)
        ]
    return members


def _call_id(answer_id: str, choice: int, call: int) -> str:
    return call_id("call_", answer_id, choice, call)
