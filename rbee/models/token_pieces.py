"""What each token of a vocabulary stands for, and the file beside tokenizer.json that keeps it.

Owns how the two families of vocabularies whose tokens can be looked up one by one write text, and the file's format.
Does not know sequences of tokens.

The file is for large vocabularies: a start that asks `tokenizers` for 262,144 names waits six times as long. It begins
with a checksum of tokenizer.json and of its own rest, so that a file that is damaged, or belongs to another
tokenizer.json, is not used.
"""

from __future__ import annotations

import itertools
import json
import string
import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    Piece = bytes | str  # bytes may be a part of a character; a text is complete characters

FILE_NAME = "token_pieces.msgpack"
_FORMAT = 1  # counted up when the content changes; the checksum begins with it
_CHECKSUM_SIZE = 4

_BYTE_FALLBACK = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

# Names are changed in one text: a call for each of them takes ten times as long. This is between them, and in none of
# them, as it is half a character.
_BETWEEN = "\ud800"
_AT_ONCE = 8192  # so that not all are in memory


class Writing(NamedTuple):
    """How a vocabulary whose tokens can be looked up one by one writes text."""

    byte_level: bool  # a token is bytes, as in GPT-2 and its successors; else text or one byte, as in SentencePiece
    strip: bool  # the space before the first word is not shown


def writing_of(tokenizer: Tokenizer) -> Writing | None:
    """None: a token's text depends on its neighbours."""
    decoder = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    if decoder.get("type") == "ByteLevel":
        return Writing(byte_level=True, strip=False)
    steps = decoder.get("decoders", [])
    if steps[:3] == _BYTE_FALLBACK and steps[3:] in ([], [_STRIP]):
        return Writing(byte_level=False, strip=bool(steps[3:]))
    return None


def pieces_of(tokenizer: Tokenizer, writing: Writing) -> Iterator[list[Piece]]:
    """What all ids stand for, in their order, some thousands at a time.

    Special tokens, and ids that the vocabulary does not have, stand for no bytes.
    """
    added = tokenizer.get_added_tokens_decoder()
    spelled: Callable[[list[str]], Sequence[Piece]]
    known: dict[int, bytes]
    if writing.byte_level:
        spelled, known = byte_level_bytes, {token_id: token.content.encode() for token_id, token in added.items()}
    else:
        spelled, known = _byte_fallback_text, _fallback_bytes(tokenizer)
    known |= {token_id: b"" for token_id, token in added.items() if token.special}
    for token_ids, names in _names(tokenizer):
        pieces = spelled([name or "" for name in names])
        yield [
            b"" if name is None else known.get(token_id, piece)
            for token_id, name, piece in zip(token_ids, names, pieces, strict=True)
        ]


def encode(tokenizer: Tokenizer, tokenizer_json: bytes) -> bytes | None:
    """The content of the file beside `tokenizer_json`, which is `tokenizer`; None if there are no pieces."""
    writing = writing_of(tokenizer)
    if writing is None:
        return None
    pieces = msgspec.msgpack.encode([*pieces_of(tokenizer, writing)])
    return _checksum(tokenizer_json, pieces) + pieces


def read(folder: Path, tokenizer_json: bytes) -> Iterable[list[Piece]] | None:
    """As `pieces_of`, from the file in `folder`; None if it has none that belongs to `tokenizer_json`."""
    try:
        content = (folder / FILE_NAME).read_bytes()
    except OSError:
        return None
    pieces = memoryview(content)[_CHECKSUM_SIZE:]
    if content[:_CHECKSUM_SIZE] != _checksum(tokenizer_json, pieces):
        return None
    return map(msgspec.msgpack.decode, msgspec.msgpack.decode(pieces, type=list[msgspec.Raw]))


def _checksum(tokenizer_json: bytes, pieces: bytes | memoryview) -> bytes:
    return zlib.crc32(pieces, zlib.crc32(tokenizer_json, _FORMAT)).to_bytes(_CHECKSUM_SIZE, "little")


def _names(tokenizer: Tokenizer) -> Iterator[tuple[range, list[str | None]]]:
    """What all ids are called, some thousands at a time; None for a gap between ids."""
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


def byte_level_bytes(names: list[str]) -> list[bytes]:
    """The bytes behind byte-level tokens.

    In GPT-2's alphabet each byte has a visible character: printable ones stand for themselves, the others take the
    code points from 256 on, in order. A token with any other character is its own UTF-8.
    """
    pieces: list[bytes] = []
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


def _byte_fallback_text(names: list[str]) -> list[Piece]:
    """The tokens' text, with SentencePiece's mark for a space replaced."""
    return [*_BETWEEN.join(names).replace("▁", " ").split(_BETWEEN)]


def _fallback_bytes(tokenizer: Tokenizer) -> dict[int, bytes]:
    """The bytes that tokens called `<0x..>` stand for, by id."""
    tokens = {digits: tokenizer.token_to_id(f"<0x{digits}>") for digits in map("".join, _HEX_DIGITS)}
    return {token_id: bytes.fromhex(digits) for digits, token_id in tokens.items() if token_id is not None}


_HEX_DIGITS = [*itertools.product(string.hexdigits, repeat=2)]
