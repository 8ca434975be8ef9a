"""The text of a stream is exact: its chunks together are the text decoded at once, and none takes back another.

2,000 sequences of tokens, of characters of all planes, graphemes of several characters, special tokens, ids that no
token has, and bytes that are no characters.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.server.text.detokenizer import detokenizers
from tests.batches import batch
from tests.server.streams.streams_parts import StreamedCase
from tests.server.text.emoji_parts import may_change
from tests.server.text.text_parts import id_of, sentencepiece_like

if TYPE_CHECKING:
    from rbee.server.text.detokenizer import Detokenizers

pytestmark = pytest.mark.anyio

SPECIAL = ["<|end|>", "<|im_start|>", "</s>"]
# Of several characters each: what one token spells is never cut.
GRAPHEMES = ["👩‍👩‍👧", "🇩🇪", "👋🏽", "e\u0301", "각", "1\ufe0f\u20e3", "நி"]
# A lead byte and the range of the byte behind it (Unicode, table 3-7); all later ones are 80..BF.
LEADS = {
    **dict.fromkeys(range(0xC2, 0xE0), (1, 0x80, 0xBF)),
    **dict.fromkeys(range(0xE0, 0xF0), (2, 0x80, 0xBF)),
    **dict.fromkeys(range(0xF0, 0xF5), (3, 0x80, 0xBF)),
    0xE0: (2, 0xA0, 0xBF),
    0xED: (2, 0x80, 0x9F),
    0xF0: (3, 0x90, 0xBF),
    0xF4: (3, 0x80, 0x8F),
}
CHARACTERS = st.one_of(*(st.integers(plane << 16, (plane << 16) + 0xFFFF) for plane in range(17))).filter(
    lambda code: not 0xD800 <= code <= 0xDFFF
)
# Half a surrogate's first two bytes are left out: the standard library's decoder waits in vain for a third one.
BYTES = st.binary(max_size=6).filter(lambda data: not any(byte == 0xED for byte in data))
PIECES = st.one_of(
    CHARACTERS.map(lambda code: chr(code).encode()),
    CHARACTERS.map(lambda code: chr(code).encode()[:-1]),
    BYTES,
    st.sampled_from(GRAPHEMES + SPECIAL),
    st.just(None),  # an id that no token has
)


def byte_level() -> Tokenizer:
    """Bytes, graphemes and special tokens."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(grapheme, special=False) for grapheme in GRAPHEMES])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """The same of a SentencePiece vocabulary."""
    tokenizer = sentencepiece_like(strip=False)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(grapheme, special=False) for grapheme in GRAPHEMES])
    return tokenizer


BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
BYTE_LEVEL_TEXT, BYTE_FALLBACK_TEXT = detokenizers(BYTE_LEVEL), detokenizers(BYTE_FALLBACK)


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    """The token of this byte."""
    return byte if tokenizer is BYTE_LEVEL else id_of(tokenizer, f"<0x{byte:02X}>")


def ids_of(tokenizer: Tokenizer, pieces: list[bytes | str | None]) -> list[int]:
    """Tokens that spell these pieces: bytes one by one, names and graphemes as one token each."""
    ids = []
    for piece in pieces:
        if piece is None:
            ids.append(99_999)
        elif isinstance(piece, str):
            ids.append(id_of(tokenizer, piece))
        else:
            ids += [byte_id(tokenizer, byte) for byte in piece]
    return ids


def incomplete(data: bytes) -> int:
    """How many bytes at the end begin a character and do not complete it."""
    for size in (3, 2, 1):
        tail = data[-size:]
        if len(tail) == size and tail[0] in LEADS:
            more, low, high = LEADS[tail[0]]
            if size <= more and (size == 1 or low <= tail[1] <= high) and all(b & 0xC0 == 0x80 for b in tail[2:]):
                return size
    return 0


def at_once(pieces: list[bytes | str | None], *, joins: bool, skip: bool) -> tuple[str, bytes]:
    """The text of all pieces, and the bytes at the end that belong to no character yet.

    Runs of bytes are decoded together. With `joins` a token of text does not end a run, as in byte-level vocabularies;
    a special token that is not shown never does.
    """
    text, run = "", b""
    for piece in pieces:
        if piece is None or (skip and piece in SPECIAL):
            continue
        if isinstance(piece, bytes):
            run += piece
        elif joins:
            run += piece.encode()
        else:
            text += run.decode(errors="replace") + piece
            run = b""
    size = incomplete(run)
    return text + run[: len(run) - size].decode(errors="replace"), run[len(run) - size :]


def new_text(case: StreamedCase) -> str:
    """What has been written since the last call."""
    text = "".join(chunk[0] for chunk in case.chunks() if chunk != "[DONE]")
    case.writer.written.clear()
    return text


def check(
    tokenizer: Tokenizer, new: Detokenizers, pieces: list[bytes | str | None], *, joins: bool, skip: bool
) -> None:
    """Stream the tokens one by one, and look at what is shown after each of them and in the end."""
    case = StreamedCase(chat=False, new_detokenizer=lambda: new(skip_special_tokens=skip))
    fine: list[bytes | str | None] = []
    for piece in pieces:
        fine += [bytes([byte]) for byte in piece] if isinstance(piece, bytes) else [piece]
    whole = ""
    for number, (token_id, piece) in enumerate(zip(ids_of(tokenizer, pieces), fine, strict=True), start=1):
        case.choices[0].deliver(batch([token_id]))
        chunk = new_text(case)
        whole += chunk
        certain, _ = at_once(fine[:number], joins=joins, skip=skip)
        waits = may_change(certain)
        assert whole + waits == certain, "what can change is not shown, and what cannot is"
        assert not isinstance(piece, str) or piece in SPECIAL or (chunk + waits).endswith(piece), (
            "a chunk ends inside of a grapheme"
        )
    case.choices[0].deliver(batch([], FinishReason.LENGTH))
    whole += new_text(case)
    certain, left = at_once(fine, joins=joins, skip=skip)
    assert whole == certain + left.decode(errors="replace")
    if joins:
        assert whole == tokenizer.decode(ids_of(tokenizer, pieces), skip_special_tokens=skip)


@settings(max_examples=1000)
@given(pieces=st.lists(PIECES, max_size=14), skip=st.booleans())
async def test_byte_level_vocabularies(pieces, skip):
    """Whatever its neighbours are, a token is some bytes."""
    check(BYTE_LEVEL, BYTE_LEVEL_TEXT, pieces, joins=True, skip=skip)


@settings(max_examples=1000)
@given(pieces=st.lists(PIECES, max_size=14), skip=st.booleans())
async def test_byte_fallback_vocabularies(pieces, skip):
    """A token of text ends a character whose bytes are incomplete."""
    check(BYTE_FALLBACK, BYTE_FALLBACK_TEXT, pieces, joins=False, skip=skip)


def test_the_graphemes_are_of_several_characters():
    """Else they would show nothing."""
    for grapheme in GRAPHEMES:
        assert len(grapheme) > 1 or len(unicodedata.normalize("NFD", grapheme)) > 1
