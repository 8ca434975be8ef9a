"""The blocks of Anthropic's messages: text, thinking and tool_use, whole and in events.

Owns their JSON. Does not know what stands around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rbee.server.protocols.call_ids import call_id
from rbee.server.text.output import OutputKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.pieces import Part, Piece

# Of a thinking block. Anthropic signs its own ones. Clients send a signature back with the block, and some drop a block
# that has none; this server needs none, so that it says so.
SIGNATURE = "unsigned"

INVALID_JSON = "INVALID_JSON"  # Anthropic's name for arguments that are no JSON object, in `input`, which must be one

_encode = msgspec.json.Encoder().encode
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b,%b:%%b}}\n\n'
_DELTA_MEMBERS = {
    OutputKind.TEXT: (b'"text_delta"', b'"text"'),
    OutputKind.REASONING: (b'"thinking_delta"', b'"thinking"'),
    OutputKind.TOOL_ARGUMENTS: (b'"input_json_delta"', b'"partial_json"'),
}


def event(kind: str, members: dict[str, Any]) -> bytes:
    """An event with its name."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind} | members))


def delta_of(kind: OutputKind, index: int) -> bytes:
    """The event of a piece of this kind, with %b for the JSON of its text."""
    return _DELTA % (index, *_DELTA_MEMBERS[kind])


def start(answer_id: str, kind: OutputKind, index: int, name: str = "", call: int = 0) -> bytes:
    """A block begins; the last two arguments are for one of a tool call: the tool, and which call it is."""
    block: dict[str, Any] = {"type": "text", "text": ""}
    if kind is OutputKind.REASONING:
        block = {"type": "thinking", "thinking": "", "signature": ""}
    elif kind is OutputKind.TOOL_NAME:
        block = {"type": "tool_use", "id": _call_id(answer_id, call), "name": name, "input": {}}
    return event("content_block_start", {"index": index, "content_block": block})


def stop(kind: OutputKind, index: int) -> bytes:
    """A block ends."""
    delta = {"type": "signature_delta", "signature": SIGNATURE}
    signature = event("content_block_delta", {"index": index, "delta": delta}) if kind is OutputKind.REASONING else b""
    return signature + event("content_block_stop", {"index": index})


def events(answer_id: str, piece: Piece, *, begins: bool) -> bytes:
    """What a piece says; if a block begins with it, what ends the one before and begins this one comes first."""
    ended = b"" if piece.ended is None else stop(piece.ended.kind, piece.part - 1)
    beginning = b""
    if begins:
        beginning = ended + start(answer_id, piece.kind, piece.part, piece.text, piece.num_calls - 1)
    if piece.kind is OutputKind.TOOL_NAME:
        return beginning
    return beginning + delta_of(piece.kind, piece.part) % _encode(piece.text)


def content(answer_id: str, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The blocks of a whole message."""
    blocks: list[dict[str, Any]] = []
    num_calls = 0
    for part in parts:
        if part.kind is OutputKind.TEXT:
            blocks.append({"type": "text", "text": part.text})
        elif part.kind is OutputKind.REASONING:
            blocks.append({"type": "thinking", "thinking": part.text, "signature": SIGNATURE})
        else:
            call = {"id": _call_id(answer_id, num_calls), "name": part.name, "input": _input(part.text)}
            blocks.append({"type": "tool_use"} | call)
            num_calls += 1
    return blocks


def _input(arguments: str) -> dict[str, Any] | msgspec.Raw:
    """The arguments as an object, as the model wrote them; a call without any has none."""
    if not arguments:
        return {}
    try:
        msgspec.json.decode(arguments, type=dict)
    except (msgspec.DecodeError, RecursionError):
        return {INVALID_JSON: arguments}
    return msgspec.Raw(arguments.encode())


def _call_id(answer_id: str, call: int) -> str:
    return call_id("toolu_", answer_id, 0, call)
