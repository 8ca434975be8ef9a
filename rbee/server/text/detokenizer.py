"""Token ids to text, one token at a time, exactly and without delay.

Owns what the tokens before one do to its text. Text is never cut inside a character, and never withheld once no
further token can change it. Knows nothing of stop strings or frames.

What comes out equals `tokenizer.decode(ids, skip_special_tokens=...)`, except for byte fallback with an invalid byte:
`tokenizers` then replaces the whole run of byte tokens, also complete characters before it. A stream cannot take those
back: here only the invalid bytes become U+FFFD. And except for an added token whose letters all are in GPT-2's alphabet
for bytes: `tokenizers` takes it for these bytes, and here it is its own text, as it is in a prompt.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable  # noqa: TC003 - a NamedTuple's fields are looked up when it is made
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rbee.models.token_pieces import pieces_of, writing_of
from rbee.transport import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer

    from rbee.models.token_pieces import Piece


class Detokenizer(Protocol):
    """The text of one sequence, token by token."""

    def push(self, token_id: int) -> str: ...  # the text that it completes; "" while a character is incomplete

    def flush(self) -> str: ...  # the text of what is still incomplete, once no further token comes

    def fork(self) -> Detokenizer: ...  # another one in the same state, for a sequence with the same beginning


class ByteLevelDetokenizer:
    """For byte-level vocabularies (GPT-2's and its successors'): a token is some bytes, whatever its neighbours are."""

    __slots__ = ("_decode", "_decoder", "_piece_of")

    def __init__(self, piece_of: Callable[[int], bytes]) -> None:
        self._piece_of = piece_of
        self._decoder = _utf8_decoder()
        self._decode = self._decoder.decode

    def push(self, token_id: int) -> str:
        return self._decode(self._piece_of(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)

    def fork(self) -> ByteLevelDetokenizer:
        other = ByteLevelDetokenizer(self._piece_of)
        other._decoder.setstate(self._decoder.getstate())
        return other


class ByteFallbackDetokenizer:
    """For SentencePiece vocabularies with byte fallback (Llama 2, Mistral, Gemma): a token is text, or one byte.

    A token of text ends a character whose bytes were incomplete.
    """

    __slots__ = ("_decode", "_decoder", "_piece_of", "_strip")

    def __init__(self, piece_of: Callable[[int], Piece], *, strip: bool) -> None:
        self._piece_of = piece_of
        self._strip = strip  # the vocabulary writes a space before the first word, which is not shown
        self._decoder = _utf8_decoder()
        self._decode = self._decoder.decode

    def push(self, token_id: int) -> str:
        piece = self._piece_of(token_id)
        text = self._decode(piece) if isinstance(piece, bytes) else self._decode(b"", True) + piece
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        return self._decode(b"", True)

    def fork(self) -> ByteFallbackDetokenizer:
        other = ByteFallbackDetokenizer(self._piece_of, strip=self._strip)
        other._decoder.setstate(self._decoder.getstate())
        return other


class WindowDetokenizer:
    """For every other decoder: decodes the last few tokens again with each new one.

    A token's text may depend on the tokens before it (a space, or none). It is the decoded text of the last shown
    tokens and the new ones, less that of the last shown ones alone, as in Hugging Face's text-generation-inference.
    Text that ends in a replacement character, which may be an incomplete one, is withheld.

    Args:
        tokenizer: decodes.
        skip_special_tokens: special tokens are not shown.
        joined: special tokens that follow each other without a space, whatever the decoder puts there.
    """

    __slots__ = ("_after_joined", "_joined", "_num_shown", "_shown_text", "_skip", "_tokenizer", "_window")

    _LONGEST = 16  # tokens; after so many, a replacement character is not an incomplete one any more

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, joined: frozenset[int] = frozenset()
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._joined = joined
        self._after_joined = False
        self._window: list[int] = []
        self._num_shown = 0  # of the window's tokens
        self._shown_text = ""  # of these tokens alone

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        new = text[len(self._shown_text) :]
        is_joined = token_id in self._joined
        if is_joined and self._after_joined:
            new = new.removeprefix(" ")
        self._after_joined = is_joined
        if not new or (text.endswith("\ufffd") and len(self._window) < self._LONGEST):
            return ""
        self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        self._shown_text = self._decode(self._window)
        return new

    def flush(self) -> str:
        return self._decode(self._window)[len(self._shown_text) :]

    def fork(self) -> WindowDetokenizer:
        other = WindowDetokenizer(self._tokenizer, skip_special_tokens=self._skip, joined=self._joined)
        other._after_joined = self._after_joined
        other._window = self._window.copy()
        other._num_shown = self._num_shown
        other._shown_text = self._shown_text
        return other

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


class TokenTable(NamedTuple):
    """A vocabulary whose tokens can be looked up one by one, as the native drain has it."""

    vocabulary: Vocabulary  # every token's piece
    strip: bool  # the space before the first word is not shown


class Detokenizers(NamedTuple):
    """Makes a detokenizer for each sequence of a vocabulary.

    `token_bytes` is a token as it is on its own: its bytes, also if they are only a part of a character; the name of a
    special token; nothing for an id that the vocabulary does not have.
    """

    make: Callable[[bool, bool], Detokenizer]  # with the arguments of `__call__`
    table: TokenTable | None  # for the native drain; None if tokens cannot be looked up one by one
    token_bytes: Callable[[int], bytes]

    def __call__(self, *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True) -> Detokenizer:
        """A fresh one. Without `skip_special_tokens` it shows their names.

        Without `spaces_between_special_tokens` it then shows no space between two of them. Of the vocabularies that
        `table` can hold none has such spaces.
        """
        return self.make(skip_special_tokens, spaces_between_special_tokens)


def detokenizers(tokenizer: Tokenizer, pieces: Iterable[list[Piece]] | None = None) -> Detokenizers:
    """The right kind for this vocabulary; all of them share its token table.

    `pieces`: what `pieces_of` gives for it, if that is known.
    """
    writing = writing_of(tokenizer)
    if writing is None:
        return _window_detokenizers(tokenizer)
    found = _Pieces(tokenizer, pieces_of(tokenizer, writing) if pieces is None else pieces)
    table = TokenTable(found.vocabulary, strip=writing.strip)

    def make(skip_special_tokens: bool, _spaces: bool) -> Detokenizer:  # noqa: FBT001 - the callback's signature
        if writing.byte_level:
            return ByteLevelDetokenizer(found.of if skip_special_tokens else found.token_bytes)
        return ByteFallbackDetokenizer(found.of if skip_special_tokens else found.with_names, strip=writing.strip)

    return Detokenizers(make, table, found.token_bytes)


def _window_detokenizers(tokenizer: Tokenizer) -> Detokenizers:
    added = tokenizer.get_added_tokens_decoder().items()
    special = frozenset(token_id for token_id, token in added if token.special)

    def make(skip_special_tokens: bool, spaces: bool) -> Detokenizer:  # noqa: FBT001 - the callback's signature
        joined = frozenset() if skip_special_tokens or spaces else special
        return WindowDetokenizer(tokenizer, skip_special_tokens=skip_special_tokens, joined=joined)

    return Detokenizers(make, None, lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False).encode())


class _Pieces:
    """What each token id stands for: bytes or text. `token_bytes`: see `Detokenizers`."""

    def __init__(self, tokenizer: Tokenizer, pieces: Iterable[list[Piece]]) -> None:
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {token_id: token.content for token_id, token in added if token.special}
        self.vocabulary = Vocabulary(itertools.chain.from_iterable(pieces))
        self.of: Callable[[int], Any] = self.vocabulary.piece  # models may have more ids than their vocabulary

    def with_names(self, token_id: int) -> Piece:
        """As `of`, of a SentencePiece vocabulary, but a special token is its name as `decode` writes it."""
        name = self._special.get(token_id)
        return self.of(token_id) if name is None else name.replace("▁", " ")

    def token_bytes(self, token_id: int) -> bytes:
        name = self._special.get(token_id)
        if name is not None:
            return name.encode()
        piece = self.of(token_id)
        return piece if isinstance(piece, bytes) else bytes(piece, "utf-8")


def _utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")  # invalid bytes become U+FFFD
