"""What becomes of the choices of one request: frames while they come, or one answer at the end.

Owns the way from pieces to frames, and that each request has exactly one end. Runs inside the drain callback. Does not
know routes, tokens or the engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rbee.server.streams.live import LiveReply, Reply
from rbee.server.streams.outcome import Outcome
from rbee.server.streams.pieces import CollectedChoice

if TYPE_CHECKING:
    from rbee.server.errors import Refusal
    from rbee.server.http.writer import Writer
    from rbee.server.streams.choices import ChoiceSink
    from rbee.server.streams.dialect import Dialect
    from rbee.server.streams.pieces import Piece


class CollectedReply(Reply):
    """Gathers the choices. It never pauses: its tokens are bounded by the model's length.

    For `per_prompt` see `Outcome`.
    """

    def __init__(self, num_choices: int = 1, *, per_prompt: int | None = None) -> None:
        super().__init__()
        self.choices = [CollectedChoice([], 0) for _ in range(num_choices)]
        self.outcome = Outcome(num_choices, per_prompt)
        self.refusal: Refusal | None = None  # set after any end that is not an ordinary one

    def show(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> None:
        collected = self.choices[choice.index]
        collected.pieces.extend(pieces)
        if choice.num_tokens:
            self.outcome.any_tokens = True
        if not reason:
            return
        self.choices[choice.index] = collected._replace(
            reason=reason, prompt_entries=choice.prompt_entries, parsed=choice.parts
        )
        refusal = self.outcome.end(choice, reason)
        if refusal is not None:
            self.fail(refusal)
        elif not self.outcome.num_open:
            self._end()

    def fail(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.sequences.cancel()
        self._end()

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def on_half_closed(self) -> None: ...


class StreamedReply(LiveReply):
    """Writes a frame for each piece of each choice, all that one drain has of a choice in one write.

    The frames of several choices alternate as their tokens come. The last choice ends the reply; an error of one ends
    all. For `per_prompt` see `Outcome`, for `keep_text` `rbee.server.streams.generation.Generation`: of choices whose
    output is not parsed.
    """

    def __init__(
        self,
        writer: Writer,
        dialect: Dialect,
        num_choices: int = 1,
        *,
        per_prompt: int | None = None,
        keep_text: bool = False,
    ) -> None:
        super().__init__(writer, dialect)
        self._num_frames = [0] * num_choices  # with text, by choice
        self._texts: list[str] | None = [] if keep_text else None
        self._outcome = Outcome(num_choices, per_prompt)

    def show(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> None:
        index = choice.index
        out = self._last_frames(choice, pieces, reason) if reason else [self._piece(index, piece) for piece in pieces]
        if out:
            self._write(b"".join(out))
        if not self._outcome.any_tokens and choice.num_tokens:
            self._outcome.any_tokens = True
        if not self._outcome.num_open:
            self._end()

    def _last_frames(self, choice: ChoiceSink, pieces: list[Piece], reason: int) -> list[bytes]:
        """The frames of a choice that ends with the last of these pieces: the end shares the frame of its text."""
        index = choice.index
        last = pieces.pop()
        out = [self._piece(index, piece) for piece in pieces]
        refusal = self._outcome.end(choice, reason)
        if refusal is not None:
            if last.text:
                out.append(self._piece(index, last))
            self.sequences.cancel()
            return [*out, self._error_frames(refusal)]
        out.append(self._last(index, last, reason))
        return out if self._outcome.num_open else [*out, self._finish()]

    def _piece(self, choice: int, piece: Piece) -> bytes:
        number = self._num_frames[choice]
        self._num_frames[choice] = number + 1
        self._last_shown = piece
        if self._texts is not None:
            self._texts.append(piece.text)
        return self._dialect.piece(choice, piece, number)

    def _last(self, choice: int, piece: Piece, reason: int) -> bytes:
        number = self._num_frames[choice]
        if piece.text:
            self._num_frames[choice] = number + 1
            if self._texts is not None:
                self._texts.append(piece.text)
        return self._dialect.end(choice, piece, number, reason)

    def _finish(self) -> bytes:
        outcome = self._outcome
        outcome.num_frames, outcome.text = self._frames_so_far(), "".join(self._texts or ())
        if self.account is not None:
            outcome.timings = self.account.timings()
        return self._dialect.finish(outcome)

    def _frames_so_far(self) -> int:
        return sum(self._num_frames)
