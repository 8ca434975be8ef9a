"""Token ids to text, one token at a time, exactly and without delay.

Owns the three ways in which vocabularies write text. Text is never cut inside a character, and never withheld once no
further token can change it. Knows nothing of stop strings or frames.

What comes out equals `tokenizer.decode(ids, skip_special_tokens=True)`, except for byte fallback with an invalid byte:
`tokenizers` then replaces the whole run of byte tokens, also complete characters before it. A stream cannot take those
back: here only the invalid bytes become U+FFFD. And except for an added token whose letters all are in GPT-2's alphabet
for bytes: `tokenizers` takes it for these bytes, and here it is its own text, as it is in a prompt.
"""

from __future__ import annotations

import codecs
import itertools
import json
import string
from collections.abc import Callable  # noqa: TC003 - a NamedTuple's fields are looked up when it is made
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rbee.transport import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer


class Detokenizer(Protocol):
    """The text of one sequence, token by token."""

    def push(self, token_id: int) -> str: ...  # the text that it completes; "" while a character is incomplete

    def flush(self) -> str: ...  # the text of what is still incomplete, once no further token comes

    def fork(self) -> Detokenizer: ...  # another one in the same state, for a sequence with the same beginning


class ByteLevelDetokenizer:
    """For byte-level vocabularies (GPT-2's and its successors'): a token is some bytes, whatever its neighbours are."""

    __slots__ = ("_decode", "_decoder", "_pieces")

    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces
        self._decoder = _utf8_decoder()
        self._decode = self._decoder.decode

    def push(self, token_id: int) -> str:
        return self._decode(self._pieces.of(token_id))

    def flush(self) -> str:
        return self._decode(b"", True)

    def fork(self) -> ByteLevelDetokenizer:
        other = ByteLevelDetokenizer(self._pieces)
        other._decoder.setstate(self._decoder.getstate())
        return other


class ByteFallbackDetokenizer:
    """For SentencePiece vocabularies with byte fallback (Llama 2, Mistral, Gemma): a token is text, or one byte.

    A token of text ends a character whose bytes were incomplete.
    """

    __slots__ = ("_decode", "_decoder", "_pieces", "_strip")

    def __init__(self, pieces: _Pieces, *, strip: bool) -> None:
        self._pieces = pieces
        self._strip = strip  # the vocabulary writes a space before the first word, which is not shown
        self._decoder = _utf8_decoder()
        self._decode = self._decoder.decode

    def push(self, token_id: int) -> str:
        piece = self._pieces.of(token_id)
        text = self._decode(piece) if isinstance(piece, bytes) else self._decode(b"", True) + piece
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        return self._decode(b"", True)

    def fork(self) -> ByteFallbackDetokenizer:
        other = ByteFallbackDetokenizer(self._pieces, strip=self._strip)
        other._decoder.setstate(self._decoder.getstate())
        return other


class WindowDetokenizer:
    """For every other decoder: decodes the last few tokens again with each new one.

    A token's text may depend on the tokens before it (a space, or none). It is the decoded text of the last shown
    tokens and the new ones, less that of the last shown ones alone, as in Hugging Face's text-generation-inference.
    Text that ends in a replacement character, which may be an incomplete one, is withheld.
    """

    __slots__ = ("_num_shown", "_shown_text", "_tokenizer", "_window")

    _LONGEST = 16  # tokens; after so many, a replacement character is not an incomplete one any more

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_shown = 0  # of the window's tokens
        self._shown_text = ""  # of these tokens alone

    def push(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        new = text[len(self._shown_text) :]
        if not new or (text.endswith("\ufffd") and len(self._window) < self._LONGEST):
            return ""
        self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        self._shown_text = self._decode(self._window)
        return new

    def flush(self) -> str:
        return self._decode(self._window)[len(self._shown_text) :]

    def fork(self) -> WindowDetokenizer:
        other = WindowDetokenizer(self._tokenizer)
        other._window = self._window.copy()
        other._num_shown = self._num_shown
        other._shown_text = self._shown_text
        return other

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids)  # skips special tokens by default


class TokenTable(NamedTuple):
    """A vocabulary whose tokens can be looked up one by one, as the native drain has it."""

    vocabulary: Vocabulary  # every token's piece
    strip: bool  # the space before the first word is not shown


class Detokenizers(NamedTuple):
    """Makes a detokenizer for each sequence of a vocabulary.

    `token_bytes` is a token as it is on its own: its bytes, also if they are only a part of a character; the name of a
    special token; nothing for an id that the vocabulary does not have.
    """

    make: Callable[[], Detokenizer]
    table: TokenTable | None  # for the native drain; None if tokens cannot be looked up one by one
    token_bytes: Callable[[int], bytes]

    def __call__(self) -> Detokenizer:
        return self.make()


def detokenizers(tokenizer: Tokenizer) -> Detokenizers:
    """The right kind for this vocabulary; all of them share its token table."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    if decoder.get("type") == "ByteLevel":
        byte_level = _Pieces(
            tokenizer,
            _byte_level_bytes,
            {token_id: added.content.encode() for token_id, added in tokenizer.get_added_tokens_decoder().items()},
        )
        table = TokenTable(byte_level.vocabulary, strip=False)
        return Detokenizers(lambda: ByteLevelDetokenizer(byte_level), table, byte_level.token_bytes)
    steps = decoder.get("decoders", [])
    if steps[:3] == _BYTE_FALLBACK and steps[3:] in ([], [_STRIP]):
        byte_fallback, strip = _Pieces(tokenizer, _byte_fallback_text, _fallback_bytes(tokenizer)), bool(steps[3:])
        table = TokenTable(byte_fallback.vocabulary, strip=strip)
        return Detokenizers(
            lambda: ByteFallbackDetokenizer(byte_fallback, strip=strip), table, byte_fallback.token_bytes
        )
    return Detokenizers(
        lambda: WindowDetokenizer(tokenizer),
        None,
        lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False).encode(),
    )


_BYTE_FALLBACK = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


class _Pieces:
    """What each token id stands for: bytes or text.

    Special tokens, and ids that the vocabulary does not have, stand for no bytes, which changes nothing around them.

    Args:
        tokenizer: has the tokens.
        spelled: what each of some tokens stands for, by what they are called.
        known: what others stand for, by their ids.
    """

    def __init__(
        self, tokenizer: Tokenizer, spelled: Callable[[list[str]], list[bytes | str]], known: dict[int, bytes]
    ) -> None:
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {token_id: token.content.encode() for token_id, token in added if token.special}
        known = known | dict.fromkeys(self._special, b"")
        self.vocabulary = Vocabulary(
            b"" if name is None else known.get(token_id, piece)
            for token_ids, names in _names(tokenizer)
            for token_id, name, piece in zip(token_ids, names, spelled([name or "" for name in names]), strict=True)
        )
        self.of: Callable[[int], Any] = self.vocabulary.piece  # models may have more ids than their vocabulary

    def token_bytes(self, token_id: int) -> bytes:
        name = self._special.get(token_id)
        if name is not None:
            return name
        piece = self.of(token_id)
        return piece if isinstance(piece, bytes) else bytes(piece, "utf-8")


def _names(tokenizer: Tokenizer) -> Iterator[tuple[range, list[str | None]]]:
    """What all ids are called, some thousands at a time, so that not all are in memory; None for a gap between ids."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    gaps = False
    for start in range(0, size, _AT_ONCE):
        token_ids = range(start, min(start + _AT_ONCE, size))
        names = [tokenizer.id_to_token(token_id) for token_id in token_ids]
        gaps = gaps or None in names
        yield token_ids, names
    if gaps:  # then there are ids beyond, unless two tokens have one
        token_ids = range(size, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
        names = [tokenizer.id_to_token(token_id) for token_id in token_ids]
        if names:
            yield token_ids, names


def _utf8_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")  # invalid bytes become U+FFFD


# Names are changed in one text: a call for each of them takes ten times as long. This is between them, and in none of
# them, as it is half a character.
_BETWEEN = "\ud800"
_AT_ONCE = 8192


def _byte_level_bytes(names: list[str]) -> list[bytes | str]:
    """The bytes behind byte-level tokens.

    In GPT-2's alphabet each byte has a visible character: printable ones stand for themselves, the others take the
    code points from 256 on, in order. A token with any other character is its own UTF-8.
    """
    pieces: list[bytes | str] = []
    for name, piece in zip(names, _BETWEEN.join(names).translate(_BYTE_OF).split(_BETWEEN), strict=True):
        try:
            pieces.append(piece.encode("latin-1"))
        except UnicodeEncodeError:
            pieces.append(name.encode())
    return pieces


_PRINTABLE = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {256 + n: chr(byte) for n, byte in enumerate(_OTHERS)}
_BYTE_OF |= dict.fromkeys(_OTHERS, "\uffff")  # not in the alphabet, nor in Latin-1


def _byte_fallback_text(names: list[str]) -> list[bytes | str]:
    """The tokens' text, with SentencePiece's mark for a space replaced."""
    return [*_BETWEEN.join(names).replace("▁", " ").split(_BETWEEN)]


def _fallback_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes that tokens called `<0x..>` stand for, by id."""
    tokens = {digits: tokenizer.token_to_id(f"<0x{digits}>") for digits in map("".join, _HEX_DIGITS)}
    return {token_id: bytes.fromhex(digits) for digits, token_id in tokens.items() if token_id is not None}


_HEX_DIGITS = [*itertools.product(string.hexdigits, repeat=2)]
