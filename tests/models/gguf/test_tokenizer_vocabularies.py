"""Tokens of real vocabularies are those of llama.cpp."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer

from rbee.models import token_pieces
from rbee.models.gguf import read_header
from rbee.models.gguf.tokenizer import special_token_ids, tokenizer_files
from rbee.models.gguf.tokenizer.splits import split_names, split_of
from rbee.models.gguf.tokenizer.vocabulary import Kind
from rbee.server.text.detokenizer import Detokenizers, detokenizers
from tests.models.gguf.token_texts import (
    NUM_SPLIT_TEXTS,
    REFERENCE,
    byte_level_splits,
    comparable_ids,
    digest_of_pieces,
    digests,
    texts,
    vocabulary_texts,
)
from tests.models.gguf.tokenizer_parts import build_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from rbee.models import ModelFolder

_REFERENCE: dict[str, Any] = json.loads(REFERENCE.read_text(encoding="utf-8"))
_SPLITS: dict[str, list[str]] = _REFERENCE["splits"]


@dataclass
class Vocabulary:
    """One vocabulary and what llama.cpp makes of it."""

    name: str
    metadata: dict[str, Any]
    tokenizer: Tokenizer
    detokenizers: Detokenizers
    reference: dict[str, Any]


@pytest.fixture(scope="module", params=_REFERENCE["vocabularies"])
def vocabulary(
    request: pytest.FixtureRequest,
    vocabularies: Path,
    default_model: ModelFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Vocabulary:
    """Each vocabulary of the reference, with the pieces of its tokens from their file, where it has one."""
    name: str = request.param
    path = vocabularies / f"ggml-vocab-{name}.gguf" if name != "default-model" else default_model.path / "model.gguf"
    metadata = read_header(path).metadata
    files = tokenizer_files(metadata)
    folder = tmp_path_factory.mktemp(name)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    kept = detokenizers(tokenizer, token_pieces.read(folder, files["tokenizer.json"]))
    return Vocabulary(name, metadata, tokenizer, kept, _REFERENCE["vocabularies"][name])


@pytest.fixture(scope="module")
def gpt2(vocabularies: Path) -> dict[str, Any]:
    """The metadata of GPT-2's vocabulary."""
    return read_header(vocabularies / "ggml-vocab-gpt-2.gguf").metadata


def encode(tokenizer: Tokenizer, strings: list[str]) -> list[list[int]]:
    """Token ids with what llama.cpp adds around a text."""
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(strings)]


def test_tokens_of_many_texts(vocabulary: Vocabulary) -> None:
    """2,000 texts of every script, with special tokens in them, give the same ids."""
    found = digests(encode(vocabulary.tokenizer, vocabulary_texts(vocabulary.name, vocabulary.metadata)))
    assert found == vocabulary.reference["tokens"]


def test_tokens_of_llama_cpps_own_texts(vocabulary: Vocabulary, vocabularies: Path) -> None:
    """The token files beside llama.cpp's vocabularies hold, where there are any."""
    path = vocabularies / f"ggml-vocab-{vocabulary.name}.gguf.inp"
    if path.exists():
        strings = path.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        lines = path.with_suffix(".out").read_text(encoding="utf-8").split("\n")
        found = [vocabulary.tokenizer.encode(string, add_special_tokens=False).ids for string in strings]
        assert found == [[int(number) for number in line.split()] for line in lines[: len(strings)]]


def test_what_each_token_stands_for(vocabulary: Vocabulary) -> None:
    """The bytes of each token are llama.cpp's; no token has an id that the file does not have."""
    assert vocabulary.tokenizer.get_vocab_size() == len(vocabulary.metadata["tokenizer.ggml.tokens"])
    pieces = map(vocabulary.detokenizers.token_bytes, comparable_ids(vocabulary.metadata))
    assert digest_of_pieces(pieces) == vocabulary.reference["pieces"]


def test_the_file_has_the_piece_of_every_token(vocabulary: Vocabulary) -> None:
    """Those from the file equal those that are made of the names that the library has."""
    kept, made = vocabulary.detokenizers.table, detokenizers(vocabulary.tokenizer).table
    assert (kept is None) == (made is None)
    if kept is not None and made is not None:
        assert len(kept.vocabulary) == len(made.vocabulary) >= vocabulary.tokenizer.get_vocab_size()
        ids = range(len(made.vocabulary))
        assert [*map(kept.vocabulary.piece, ids)] == [*map(made.vocabulary.piece, ids)]
        assert kept.strip == made.strip


def test_text_of_many_tokens(vocabulary: Vocabulary) -> None:
    """What a client sees of ordinary tokens is their bytes, one after the other."""
    kinds = vocabulary.metadata["tokenizer.ggml.token_type"].tolist()
    shown = [token_id for token_id in range(256, 2000) if kinds[token_id] in (Kind.NORMAL, Kind.BYTE)]
    detokenizer = vocabulary.detokenizers()
    text = "".join([*map(detokenizer.push, shown), detokenizer.flush()])
    assert text == b"".join(map(vocabulary.detokenizers.token_bytes, shown)).decode(errors="replace")


def test_ends_and_special_ids(vocabulary: Vocabulary) -> None:
    """BOS and EOS, and the tokens that end a generation, are llama.cpp's."""
    bos, eos, ends = special_token_ids(vocabulary.metadata)
    assert [bos, eos] == vocabulary.reference["special_ids"]
    assert sorted(ends) == vocabulary.reference["ends"]


@pytest.mark.parametrize("name", {split_of(name): name for name in byte_level_splits()}.values())
def test_each_way_to_split_words(name: str, gpt2: dict[str, Any]) -> None:
    """With each value of tokenizer.ggml.pre one vocabulary gives llama.cpp's tokens."""
    tokenizer = build_tokenizer(gpt2 | {"tokenizer.ggml.pre": name})
    found = digests(encode(tokenizer, texts(NUM_SPLIT_TEXTS)))
    same = [other for other in byte_level_splits() if split_of(other) == split_of(name)]
    assert [other for other in same if _SPLITS[other] != found] == []


def test_all_ways_to_split_words_are_compared() -> None:
    """Except those of vocabularies that do not write bytes, which gemma-4's shows."""
    assert set(split_names()) - _SPLITS.keys() == {"gemma4", "granite-embed-multi-311m", "sarvam-moe"}
