"""The text of one sequence as it may be shown: no special or stop tokens, no stop strings, no part of an emoji.

Owns what of a token's text is shown, and when. Knows neither logprobs nor replies.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.text.output.marks import SIGN
from rbee.transport import EmojiHold

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from rbee.server.text.detokenizer import Detokenizer
    from rbee.server.text.stop_strings import StopStrings
    from rbee.server.text.tokenizer import TextCodec


class Echo(NamedTuple):
    """A prompt that comes in front of its completion."""

    token_ids: list[int]
    text: str  # as it is shown
    offsets: list[int]  # where each token begins in it, in characters
    detokenizer: Detokenizer  # after the prompt; each choice forks it, as its first word may begin with a space

    @classmethod
    def of(
        cls,
        token_ids: list[int],
        text: str | None,
        codec: TextCodec,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> Echo:
        """Find the tokens in `text`, or in what they decode to if the prompt was given as token ids (None).

        Those ids may be special tokens, which are shown by their names. One that was given as text is found by its
        name. The last two arguments are for the completion. A tokenizer that changes letters (to lower case, say) is
        taken not to change their number. Takes time in proportion to the prompt.
        """
        detokenizer = codec.detokenizer(
            skip_special_tokens=skip_special_tokens, spaces_between_special_tokens=spaces_between_special_tokens
        )
        pieces = [detokenizer.push(token_id) for token_id in token_ids]
        if text is None:
            named = codec.detokenizer(skip_special_tokens=False)
            pieces = [named.push(token_id) for token_id in token_ids]
            text = "".join(pieces)
        offsets, end = [], 0
        for token_id, piece in zip(token_ids, pieces, strict=True):
            offsets.append(end)
            name = piece or token_name(codec.token_bytes(token_id))
            if not text.startswith(" ", end):
                name = name.removeprefix(" ")  # SentencePiece puts one before the first word
            if piece or text.startswith(name, end):
                end = min(end + len(name), len(text))
        return cls(token_ids, text, offsets, detokenizer)


class TokenText:
    """The text of one sequence, token by token.

    Args:
        detokenizer: for this sequence alone; after the prompt if that is echoed.
        stops: end the text.
        stop_token_ids: tokens that are not shown.
        min_tokens: a stop string that one of so many first tokens completes is ordinary text.
        num_echoed: characters that come before.
        token_names: ids of tokens that are told apart from texts of the same letters, each with its name: SIGN stands
            in front of it. Stop strings do not see that, and no count counts it.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stops: StopStrings | None = None,
        stop_token_ids: Collection[int] = (),
        *,
        min_tokens: int = 0,
        num_echoed: int = 0,
        token_names: Mapping[int, str] | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._emoji = EmojiHold()
        self._stops = stops
        self._stop_token_ids = frozenset(stop_token_ids)
        self._min_tokens = min_tokens
        self._token_names = token_names or {}
        self._names_begin: deque[int] = deque()  # where the names of such tokens do that are not shown yet
        self.num_tokens = 0  # pushed so far
        self.num_decoded = self.num_shown = num_echoed  # characters of them, and of these those that may be shown
        self.stopped = False  # a stop string is complete: no more text

    @property
    def stop_string(self) -> str | None:
        """The one that is complete."""
        return None if self._stops is None else self._stops.complete

    def push(self, token_id: int) -> str:
        """The text that can be shown because of this token."""
        self.num_tokens += 1
        if token_id in self._stop_token_ids:
            return ""
        text = self._detokenizer.push(token_id)
        name = self._token_names.get(token_id)
        if name is not None and text.endswith(name):
            self._names_begin.append(self.num_decoded + len(text) - len(name))
        return self._show(text)

    def flush(self) -> str:
        """The text that waited for a next token which will not come."""
        text = self._show(self._detokenizer.flush())
        rest = "" if self._stops is None or self.stopped else self._stops.flush()
        return text + self._shown(self._emoji.push(rest) + self._emoji.flush())

    def _show(self, text: str) -> str:
        self.num_decoded += len(text)
        if self._stops is not None and text:
            text, self.stopped = self._stops.push(text, may_end=self.num_tokens > self._min_tokens)
        text = self._emoji.push(text)
        if self.stopped:
            text += self._emoji.flush()
        return self._shown(text)

    def _shown(self, text: str) -> str:
        """The text that is shown now, with SIGN where it belongs."""
        begin = self.num_shown
        self.num_shown += len(text)
        if not self._names_begin:
            return text
        pieces, cut = [], 0
        while self._names_begin and self._names_begin[0] < self.num_shown:
            at = self._names_begin.popleft() - begin
            pieces += [text[cut:at], SIGN]
            cut = at
        return "".join([*pieces, text[cut:]])


def token_name(data: bytes) -> str:
    r"""A token in words: its text, or `bytes:\xf0\x9f` if that is no valid text alone."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
