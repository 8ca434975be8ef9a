"""The file that keeps the pieces of a vocabulary's tokens: when it is used, and when it is not."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from rbee.models import token_pieces
from rbee.models.gguf.tokenizer import tokenizer_files
from rbee.server.text.tokenizer import TextCodec
from tests.models.gguf.tokenizer_parts import byte_level, sentence_pieces, unigrams, word_pieces
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, wordpiece

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

TOKENIZERS = [SYNTHETIC, *SENTENCEPIECE.values()]


def save(folder: Path, tokenizer: Tokenizer, pieces_from: Tokenizer) -> bytes:
    """Write `tokenizer` and the pieces of another one into `folder`; the tokenizer.json."""
    tokenizer_json = tokenizer.to_str().encode()
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    pieces = token_pieces.encode(pieces_from, tokenizer_json)
    assert pieces is not None
    (folder / token_pieces.FILE_NAME).write_bytes(pieces)
    return tokenizer_json


def read(folder: Path, tokenizer_json: bytes) -> list[bytes | str] | None:
    """All pieces in the file."""
    found = token_pieces.read(folder, tokenizer_json)
    return None if found is None else [*itertools.chain.from_iterable(found)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_what_is_read_is_what_was_written(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Texts are texts, bytes are bytes, in the order of ids."""
    tokenizer_json = save(tmp_path, tokenizer, tokenizer)
    table = TextCodec(tokenizer).table
    assert table is not None
    assert read(tmp_path, tokenizer_json) == [*map(table.vocabulary.piece, range(len(table.vocabulary)))]


def test_a_codec_takes_its_pieces_from_the_file(tmp_path: Path) -> None:
    """Those of another vocabulary, if the file has them and fits to tokenizer.json."""
    save(tmp_path, SENTENCEPIECE[False], SYNTHETIC)
    assert TextCodec.load(tmp_path).token_bytes(65) == b"A"


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    """Whichever byte is another one, and wherever the file ends; the codec is that without a file."""
    tokenizer = SENTENCEPIECE[False]
    tokenizer_json = save(tmp_path, tokenizer, tokenizer)
    path = tmp_path / token_pieces.FILE_NAME
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :]):
            path.write_bytes(damaged)
            assert token_pieces.read(tmp_path, tokenizer_json) is None
    loaded, made = TextCodec.load(tmp_path), TextCodec(tokenizer)
    assert [*map(loaded.token_bytes, range(300))] == [*map(made.token_bytes, range(300))]


def test_the_file_of_another_tokenizer_is_not_used(tmp_path: Path) -> None:
    """As after an edit of tokenizer.json in a copy of the folder, and where there is no file."""
    tokenizer_json = save(tmp_path, SYNTHETIC, SYNTHETIC)
    assert token_pieces.read(tmp_path, tokenizer_json.replace(b'"A":', b'"a":')) is None
    (tmp_path / token_pieces.FILE_NAME).unlink()
    assert token_pieces.read(tmp_path, tokenizer_json) is None


def test_tokens_that_depend_on_their_neighbours_have_no_file() -> None:
    """Their pieces are none; a GGUF file's other vocabularies have one."""
    assert token_pieces.encode(wordpiece(), b"") is None
    assert tokenizer_files(word_pieces()).keys() == {"tokenizer.json"}
    for metadata in (byte_level(), sentence_pieces(), unigrams()):
        assert tokenizer_files(metadata).keys() == {"tokenizer.json", token_pieces.FILE_NAME}
