"""The items of a response's output: messages, reasoning and function calls, whole and in events.

Owns their JSON, and how many events each has, so that the number of any event follows from what came before it. Does
not know the response around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.server.protocols.call_ids import call_id
from rbee.server.protocols.token_logprobs import listed_tokens
from rbee.server.text.output import OutputKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.protocols.token_logprobs import TokenBytes
    from rbee.server.streams.pieces import Part, Piece

_encode = msgspec.json.Encoder().encode
_NO_TOKENS = b"[]"

NUM_CREATED = 2  # events before those of the first item
NUM_OPENING = 2  # of a message or of reasoning, before its first piece
_NUM_CLOSING = {OutputKind.TEXT: 3, OutputKind.REASONING: 3, OutputKind.TOOL_ARGUMENTS: 2}  # behind the last piece
_CALL = (OutputKind.TOOL_NAME, OutputKind.TOOL_ARGUMENTS)
_PREFIXES = {OutputKind.TEXT: "msg", OutputKind.REASONING: "rs", OutputKind.TOOL_ARGUMENTS: "fc"}
_DELTAS = {
    OutputKind.TEXT: "response.output_text.delta",
    OutputKind.REASONING: "response.reasoning_text.delta",
    OutputKind.TOOL_ARGUMENTS: "response.function_call_arguments.delta",
}


def number_of(piece: Piece, number: int) -> int:
    """The sequence number of a piece's own event; `number` pieces came before it.

    That of a call's name is the beginning of its item, which has no other opening.
    """
    is_call = piece.kind in _CALL
    num_calls = piece.num_calls - is_call
    return _num_events(number, piece.part, num_calls) + (0 if is_call else NUM_OPENING)


def _num_events(num_pieces: int, num_items: int, num_calls: int) -> int:
    """When so many items have ended, of which so many are calls."""
    of_others = (num_items - num_calls) * (NUM_OPENING + _NUM_CLOSING[OutputKind.TEXT])
    return NUM_CREATED + num_pieces + of_others + num_calls * _NUM_CLOSING[OutputKind.TOOL_ARGUMENTS]


def event(kind: str, number: int, members: dict[str, Any]) -> bytes:
    """An event with its name and its sequence number."""
    data = _encode({"type": kind, "sequence_number": number} | members)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


class Delta(NamedTuple):
    """The constant bytes of an event."""

    to_number: bytes
    to_text: bytes
    after: bytes


class Items:
    """The items of one response.

    Args:
        answer_id: its id.
        token_bytes: a token as it is on its own, if the texts list the logprobs of theirs.
    """

    def __init__(self, answer_id: str, token_bytes: TokenBytes | None = None) -> None:
        self._answer_id = answer_id
        self._token_bytes = token_bytes
        self._listed: dict[int, list[bytes]] = {}  # tokens of the texts so far, by item, as JSON without brackets
        self._unique = answer_id.partition("_")[2]
        self._deltas: dict[tuple[OutputKind, int], Delta] = {}

    def item_id(self, kind: OutputKind, index: int) -> str:
        """Of the item that a part of this kind is."""
        return f"{_PREFIXES[kind]}_{self._unique}" + (f"_{index}" if index else "")

    def whole(self, parts: Sequence[Part], status: str) -> list[dict[str, Any]]:
        """The output of a response; only the last item may be incomplete."""
        items, num_calls = [], 0
        for index, part in enumerate(parts):
            of_last = status if index == len(parts) - 1 else "completed"
            items.append(self._item(part, index, num_calls, of_last))
            num_calls += part.kind is OutputKind.TOOL_ARGUMENTS
        return items

    def open(self, kind: OutputKind, index: int, number: int) -> bytes:
        """A message, or reasoning, begins with this event."""
        item = {"output_index": index, "item": self._content_item(kind, index, "in_progress", [])}
        content = self._place(kind, index) | {"part": self._content(kind, index, "")}
        added = event("response.output_item.added", number, item)
        return added + event("response.content_part.added", number + 1, content)

    def piece(self, piece: Piece, number: int) -> bytes:
        """The events of a piece; `number` pieces came before it."""
        kind, own = piece.kind, number_of(piece, number)
        before = b""
        if piece.ended is not None:
            behind = own - (0 if kind in _CALL else NUM_OPENING)
            before = self._close(piece.ended, piece.part - 1, piece.num_calls - (kind in _CALL), behind, "completed")
        if kind is OutputKind.TOOL_NAME:
            call = self._call(piece.part, piece.num_calls - 1, "in_progress", piece.text, "")
            return before + event("response.output_item.added", own, {"output_index": piece.part, "item": call})
        if number == 0 or piece.ended is not None:
            before += self.open(kind, piece.part, own - NUM_OPENING)
        to_number, to_text, after = self.delta(kind, piece.part)
        if self._token_bytes is not None and kind is OutputKind.TEXT:
            after = self.listing(piece, after)
        return b"".join((before, to_number, b"%d" % own, to_text, _encode(piece.text), after))

    def listing(self, piece: Piece, after: bytes) -> bytes:
        """What comes behind the text of its event, whose end without tokens is `after`."""
        return after.replace(_NO_TOKENS, b"[%b]" % self.keep(piece))

    def keep(self, piece: Piece) -> bytes:
        """Note the tokens that a piece of text lists, and return them as JSON without brackets."""
        if self._token_bytes is None or piece.kind is not OutputKind.TEXT or not piece.entries:
            return b""
        tokens = _encode(listed_tokens(piece.entries, token_bytes=self._token_bytes))[1:-1]
        self._listed.setdefault(piece.part, []).append(tokens)
        return tokens

    def delta(self, kind: OutputKind, index: int) -> Delta:
        """The event of a piece of an item, but for its number and its text."""
        delta = self._deltas.get((kind, index))
        if delta is None:
            name, place = _DELTAS[kind].encode(), _encode(self._place(kind, index))
            delta = self._deltas[kind, index] = Delta(
                b'event: %b\ndata: {"type":"%b","sequence_number":' % (name, name),
                b"," + place[1:-1] + b',"delta":',
                b',"logprobs":%b}\n\n' % _NO_TOKENS if kind is OutputKind.TEXT else b"}\n\n",
            )
        return delta

    def finish(self, parts: Sequence[Part], num_pieces: int, status: str) -> tuple[bytes, int]:
        """What ends the last item, after so many pieces, and the number of the event behind it."""
        num_calls = sum(part.kind is OutputKind.TOOL_ARGUMENTS for part in parts)
        behind = _num_events(num_pieces, len(parts), num_calls)
        return self._close(parts[-1], len(parts) - 1, num_calls, behind, status), behind

    def _close(self, part: Part, index: int, num_calls: int, behind: int, status: str) -> bytes:
        """An item ends; `num_calls` are those so far, its own included, `behind` is the number of the next event."""
        number, place = behind - _NUM_CLOSING[part.kind], self._place(part.kind, index)
        item = {"output_index": index, "item": self._item(part, index, num_calls - 1, status)}
        done = _DELTAS[part.kind].replace(".delta", ".done")
        if part.kind is OutputKind.TOOL_ARGUMENTS:
            text = event(done, number, place | {"name": part.name, "arguments": part.text})
        else:
            logprobs = {"logprobs": self._tokens(index)} if part.kind is OutputKind.TEXT else {}
            text = event(done, number, place | {"text": part.text} | logprobs)
            content = place | {"part": self._content(part.kind, index, part.text)}
            text += event("response.content_part.done", number + 1, content)
        return text + event("response.output_item.done", behind - 1, item)

    def _item(self, part: Part, index: int, call: int, status: str) -> dict[str, Any]:
        if part.kind is OutputKind.TOOL_ARGUMENTS:
            return self._call(index, call, status, part.name, part.text)
        return self._content_item(part.kind, index, status, [self._content(part.kind, index, part.text)])

    def _content_item(self, kind: OutputKind, index: int, status: str, content: list[Any]) -> dict[str, Any]:
        own_id = self.item_id(kind, index)
        if kind is OutputKind.REASONING:
            return {"id": own_id, "type": "reasoning", "status": status, "summary": [], "content": content}
        return {"id": own_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _call(self, index: int, call: int, status: str, name: str, arguments: str) -> dict[str, Any]:
        return {
            "id": self.item_id(OutputKind.TOOL_ARGUMENTS, index),
            "type": "function_call",
            "status": status,
            "call_id": call_id("call_", self._answer_id, 0, call),
            "name": name,
            "arguments": arguments,
        }

    def _place(self, kind: OutputKind, index: int) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self.item_id(kind, index), "output_index": index}
        return place if kind is OutputKind.TOOL_ARGUMENTS else place | {"content_index": 0}

    def _content(self, kind: OutputKind, index: int, text: str) -> dict[str, Any]:
        if kind is OutputKind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._tokens(index)}

    def _tokens(self, index: int) -> msgspec.Raw:
        """The tokens of the text that this item is, so far."""
        return msgspec.Raw(b"[%b]" % b",".join(self._listed.get(index, ())))
