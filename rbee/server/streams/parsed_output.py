"""The output of one choice as its parser reads it: which piece each span, each token and each entry belongs to.

Owns what a piece says of the parts before it, where the reasoning is shown, and which tokens count as reasoning. Knows
neither formats nor protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.server.streams.generation import ReasoningPlace
from rbee.server.streams.pieces import Part, Piece
from rbee.server.text.output import OutputKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.streams.generation import OutputPlan
    from rbee.server.streams.records import TokenLogprob
    from rbee.server.text.output import Span

_TEXT, _REASONING = OutputKind.TEXT, OutputKind.REASONING  # looked up for each token
_NAME, _ARGUMENTS = OutputKind.TOOL_NAME, OutputKind.TOOL_ARGUMENTS


class ParsedOutput:
    """Turns the text of one choice into pieces.

    A token whose text shows nothing yet, or is a tag, belongs to the next piece: so does its entry. Spans of one kind
    that a token brings are one piece. Entries of reasoning that is not shown are left out.

    Args:
        plan: how the output is parsed.
        keep_text: the parts have their text.
    """

    def __init__(self, plan: OutputPlan, *, keep_text: bool) -> None:
        self.num_calls = 0
        self.reasoning_tokens = 0
        self._parser = plan.parser()
        self._place = plan.reasoning.place
        self._at_once = plan.reasoning.at_once
        self._keep_text = keep_text
        self._ended: list[Part] = []
        self._open: Part | None = None  # the part that has begun last, without its text
        self._texts: list[str] = []  # of that part
        self._entries: list[TokenLogprob] = []  # of tokens that belong to the next piece
        self._num_tokens = 0  # that belong to spans
        self._is_hidden = False  # the last span is reasoning that is not shown
        self._held: list[Piece] = []  # reasoning that is to be shown at once

    @property
    def parts(self) -> Sequence[Part]:
        """What there is so far."""
        return self._ended if self._open is None else [*self._ended, self._whole(self._open)]

    def push(
        self, pieces: list[Piece], text: str, num_tokens: int, committed_ns: int | None, entries: list[TokenLogprob]
    ) -> None:
        """Append what the text of a token shows. The arguments are those of a `Piece`."""
        self._entries += entries
        self._show(pieces, self._parser.push(text), num_tokens, committed_ns)

    def finish(
        self, pieces: list[Piece], text: str, num_tokens: int, committed_ns: int | None, entries: list[TokenLogprob]
    ) -> Piece:
        """Append what is left, after this last text, but for the last piece, which is returned."""
        if text:
            self._show(pieces, self._parser.push(text), num_tokens, committed_ns)
        self._show(pieces, self._parser.finish(), num_tokens, committed_ns)
        self._release(pieces)
        if self._is_hidden:
            self._entries, entries = [], []
        if pieces and pieces[-1].num_tokens == num_tokens:
            last = pieces.pop()
        else:
            last = Piece("", num_tokens, committed_ns, [], _TEXT, self.num_calls, len(self._ended))
        return last._replace(entries=last.entries + self._entries + entries)

    def _show(self, pieces: list[Piece], spans: Sequence[Span], num_tokens: int, committed_ns: int | None) -> None:
        for kind, text, _ in spans:
            is_reasoning = kind is _REASONING
            if is_reasoning:
                self.reasoning_tokens += num_tokens - self._num_tokens
            self._num_tokens = num_tokens
            self._is_hidden = is_reasoning and self._place is ReasoningPlace.NOWHERE
            if self._is_hidden:
                self._entries = []
            elif is_reasoning and self._at_once:
                self._held.append(Piece(text, num_tokens, committed_ns, self._entries))
                self._entries = []
            else:
                self._release(pieces)
                self._add(pieces, kind, text, num_tokens, committed_ns)

    def _release(self, pieces: list[Piece]) -> None:
        """Append the reasoning that was held."""
        held, self._held = self._held, []
        if held:
            later, self._entries = self._entries, [entry for piece in held for entry in piece.entries]
            text = "".join([piece.text for piece in held])
            self._add(pieces, _REASONING, text, held[-1].num_tokens, held[-1].committed_ns)
            self._entries += later

    def _add(self, pieces: list[Piece], kind: OutputKind, text: str, num_tokens: int, committed_ns: int | None) -> None:
        """Append a piece, or join it to the last one."""
        if kind is _REASONING and self._place is ReasoningPlace.IN_TEXT:
            kind = _TEXT
        begins = self._open is None or kind is not self._open.kind  # a name is no part's kind
        ended = self._begin(kind, text) if begins else None
        if self._keep_text and kind is not _NAME:
            self._texts.append(text)
        if not begins and pieces and (last := pieces[-1]).num_tokens == num_tokens and last.kind is kind:
            pieces[-1] = last._replace(text=last.text + text)
            return
        part = len(self._ended)
        pieces.append(Piece(text, num_tokens, committed_ns, self._entries, kind, self.num_calls, part, ended))
        self._entries = []

    def _begin(self, kind: OutputKind, text: str) -> Part | None:
        """Go on to a part whose first span this is. Returns the one before."""
        ended = None if self._open is None else self._whole(self._open)
        if ended is not None:
            self._ended.append(ended)
        self._texts = []
        if kind is _NAME:
            self.num_calls += 1
            self._open = Part(_ARGUMENTS, "", text)
        else:
            self._open = Part(kind, "")
        return ended

    def _whole(self, part: Part) -> Part:
        return part._replace(text="".join(self._texts))
