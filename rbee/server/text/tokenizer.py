"""Text to token ids.

Owns the tokenizer, and which of its two encoders takes a text. Does not know what a chat or a model is.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from rbee.errors import ModelError
from rbee.grammars import is_name
from rbee.models import token_pieces
from rbee.server.text.byte_pairs import native_encoder
from rbee.server.text.detokenizer import Detokenizer, detokenizers
from rbee.server.text.named_tokens import NamedTokens
from rbee.server.text.plain_texts import PlainTexts

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rbee.models.token_pieces import Piece


# Of a text so many times as long as the tokens that there may be, in characters, a beginning is tokenized first.
_LIKELY_CHARACTERS = 4
# Characters: so many tokens more, at most, has the beginning of a text than the whole up to there, for what is cut may
# be one token in the whole.
_LONGEST_TOKEN = 128
_LINE_BREAK = "\n"
_ESCAPE = b"\\u"  # in JSON, of a letter that is not ASCII
_NOTHING: tuple[list[int], list[int]] = ([], [])


class TooManyTokensError(Exception):
    """A text has more tokens than there may be, at least `found`."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


class TextCodec:
    """A model's tokenizer, both ways. Safe to use from several threads.

    Args:
        tokenizer: which the ids are those of.
        pieces: what its tokens stand for, if that is known; see `detokenizers`.
        content: its tokenizer.json, if there is one.
    """

    def __init__(
        self, tokenizer: Tokenizer, pieces: Iterable[list[Piece]] | None = None, content: bytes | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._plain_texts = PlainTexts(tokenizer)
        self._around = _around(tokenizer)
        self._native = native_encoder(tokenizer, content) if self._around else None
        self._detokenizers = detokenizers(tokenizer, pieces)
        self.table = self._detokenizers.table  # these two: see `Detokenizers`
        self.token_bytes = self._detokenizers.token_bytes
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)  # ids, those of added tokens included

    @classmethod
    def load(cls, folder: Path) -> TextCodec:
        """Read `folder`/tokenizer.json, or raise ModelError."""
        path = folder / "tokenizer.json"
        try:
            content = path.read_bytes()
            return cls(Tokenizer.from_buffer(content), token_pieces.read(folder, content), content)
        except Exception as error:  # tokenizers raises bare Exception for everything
            raise ModelError(f"{path} cannot be read as a tokenizer: {error}. Fetch the model again.") from error

    def encode(self, text: str, *, add_special_tokens: bool, limit: int = sys.maxsize) -> list[int]:
        """The token ids of `text`.

        Raises:
            TooManyTokensError: there are more than `limit`. Of a long text only so much is tokenized as shows that.
        """
        self.check_beginning(text, limit)
        ids = self._encode(text, add_special_tokens, limit)
        if isinstance(ids, int):
            raise TooManyTokensError(ids)
        return ids

    def check_beginning(self, text: str, limit: int) -> None:
        """Raise TooManyTokensError for a long text whose beginning already has more than `limit` tokens."""
        length = max(limit, 1) * _LIKELY_CHARACTERS
        while length < len(text):
            ids = self._encode(text[:length], add_special_tokens=False, limit=limit + _LONGEST_TOKEN)
            if isinstance(ids, int):
                raise TooManyTokensError(ids - _LONGEST_TOKEN)
            length *= 2

    def encode_pieces(
        self, pieces: list[str], *, add_special_tokens: bool = False, limit: int = sys.maxsize
    ) -> list[int]:
        """The token ids of a text that is cut where no token may be; see `encode`. What is added comes first."""
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if number == 0:
                ids += self.encode(piece, add_special_tokens=add_special_tokens, limit=limit)
            else:
                ids += self._encode_rest(piece, limit)
            _check_number(len(ids), limit)
        return ids

    def _encode_rest(self, text: str, limit: int) -> list[int]:
        """The token ids of a text that does not begin here, without the space that SentencePiece puts before one."""
        before = self._before_rest
        if before:
            ids = self.encode(_LINE_BREAK + text, add_special_tokens=False, limit=limit + len(before))
            if ids[: len(before)] == before:
                return ids[len(before) :]
        return self.encode(text, add_special_tokens=False, limit=limit)

    @functools.cached_property
    def _before_rest(self) -> list[int]:
        """The token ids of a line break, which no token joins to what follows; none if a text begins without a space.

        A text behind it is encoded as one that goes on.
        """
        before, both, alone = (
            self.encode(text, add_special_tokens=False) for text in (_LINE_BREAK, _LINE_BREAK + "/", "/")
        )
        return [] if both[len(before) :] == alone else before

    def is_quick_with(self, body: bytes) -> bool:
        """Whether each text in this JSON is tokenized at the native encoder's pace; NFC may change other letters."""
        if self._native is None:
            return False
        return self._tokenizer.normalizer is None or (body.isascii() and _ESCAPE not in body)

    def _encode(self, text: str, add_special_tokens: bool, limit: int) -> list[int] | int:  # noqa: FBT001 - private
        """The token ids of a text; if there are more than `limit`, how many."""
        if self._native is not None:
            before, after = self._around if add_special_tokens and self._around else _NOTHING
            around = len(before) + len(after)
            ids = self._native.encode(text, max(limit - around, 0))
            if isinstance(ids, int):
                return ids + around
            if ids is not None:
                return [*before, *ids, *after] if len(ids) + around <= limit else len(ids) + around
        tokenizer = self._plain_texts.tokenizer_for(text)
        # The batch call alone gives up Python's lock, so that other threads run meanwhile.
        [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids if len(encoding) <= limit else len(encoding)

    def decode(self, token_ids: list[int]) -> str:
        """The text of `token_ids`, special tokens by their names."""
        [text] = self._tokenizer.decode_batch([token_ids], skip_special_tokens=False)
        return text

    @property
    def special_tokens(self) -> list[str]:
        """The texts that become tokens with a meaning of their own."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special]

    @functools.cached_property
    def named_tokens(self) -> NamedTokens:
        """Those that a grammar has to name."""
        added = self._tokenizer.get_added_tokens_decoder().items()
        return NamedTokens(
            {token.content: id_ for id_, token in added if is_name(token.content, special=token.special)}
        )

    def token_names(self, token_ids: list[int]) -> list[str]:
        """Each of `token_ids` as the vocabulary spells it: where a space is a character of its own, with that."""
        name = self._tokenizer.id_to_token
        return [name(token_id) or "" for token_id in token_ids]

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def added_token_ids(self) -> dict[str, int]:
        """The tokens that were added to the vocabulary: no text is cut within them."""
        return {token.content: token_id for token_id, token in self._tokenizer.get_added_tokens_decoder().items()}

    def detokenizer(
        self, *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> Detokenizer:
        """A fresh one; see `Detokenizers`."""
        return self._detokenizers(
            skip_special_tokens=skip_special_tokens, spaces_between_special_tokens=spaces_between_special_tokens
        )


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """What the tokenizer puts before and after a text; None if that cannot be told."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
    places = [place for place in range(len(whole)) if whole[place : place + len(plain)] == plain]
    if not plain or len(places) != 1:
        return None
    return whole[: places[0]], whole[places[0] + len(plain) :]


def _check_number(found: int, limit: int) -> None:
    if found > limit:
        raise TooManyTokensError(found)
