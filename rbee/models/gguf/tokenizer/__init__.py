"""Tokenizers from the metadata of GGUF files, with the tokens that llama.cpp gives.

Owns the whole tokenizer: special tokens, and what is put before and after a text. Does not know files, and needs
neither torch nor transformers. The tokens differ from llama.cpp's in these cases only:

* A special token that takes the spaces beside it (Phi-3's, <mask>) takes those that are not ASCII too.
* Of special tokens that overlap in a text, the leftmost counts here, and in llama.cpp the longest.
* Of two accents on one letter or symbol, a "t5" vocabulary's normalization may lose the second.
* SentencePiece's tokens of one score that overlap in a way that is no run of spaces: see models.py.
* Characters that are new in Unicode 16: see splits.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from rbee.errors import ModelError
from rbee.models import token_pieces
from rbee.models.gguf.tokenizer import models
from rbee.models.gguf.tokenizer.vocabulary import (
    SpecialTokenIds,
    Vocabulary,
    flag,
    read_vocabulary,
    special_token_ids,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SpecialTokenIds", "special_token_ids", "tokenizer_files"]


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json and the file of its pieces, by name: the tokenizer that `metadata` (`tokenizer.ggml.*`) describe.

    With add_special_tokens, a text gets what llama.cpp puts around it; texts that name special tokens always become
    these tokens, as with llama.cpp's parse_special.

    Raises:
        ModelError: the metadata are wrong or incomplete, or of a kind that is not supported.
    """
    try:
        return _files(metadata)
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for everything
        raise ModelError(
            f"The GGUF file's vocabulary cannot be used: {error}. Download or convert the model again."
        ) from error


def _files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    vocabulary = read_vocabulary(metadata)
    tokenizer = _build(metadata, vocabulary)
    content = msgspec.json.decode(tokenizer.to_str())
    if vocabulary.model == "llama":
        # The library takes merges from Python in more time and memory than their text takes to read.
        content["model"]["merges"] = models.merges_by_score(metadata, vocabulary)
    # The library sorts a vocabulary while it reads it, which takes a fifth of that time; a sorted one takes less.
    text = msgspec.json.encode(content, order="deterministic")
    pieces = token_pieces.encode(tokenizer, text)
    return {"tokenizer.json": text} | ({} if pieces is None else {token_pieces.FILE_NAME: pieces})


def _build(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Tokenizer:
    split, ids = vocabulary.split, vocabulary.special_ids
    if vocabulary.model == "bert":
        return _finish(models.word_pieces(metadata, vocabulary), metadata, vocabulary, ids["bos"], ids["seperator"])
    if split is not None:
        tokenizer = models.byte_pairs(metadata, vocabulary, split)
    elif vocabulary.model == "llama":
        tokenizer = models.sentence_pieces(metadata, vocabulary)
    else:
        tokenizer = models.unigrams(metadata, vocabulary)
    add_bos = flag(metadata, "add_bos_token", default=vocabulary.model == "llama" if split is None else split.add_bos)
    add_bos = add_bos or (split is not None and split.always_bos)
    add_eos = flag(metadata, "add_eos_token", default=vocabulary.model == "t5")
    return _finish(tokenizer, metadata, vocabulary, ids["bos"] if add_bos else None, ids["eos"] if add_eos else None)


def _finish(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], vocabulary: Vocabulary, first: int | None, last: int | None
) -> Tokenizer:
    """Add the tokens that text can name, and the ids `first` and `last` around a text."""
    tokens = vocabulary.tokens
    left, right = _stripping(metadata, vocabulary)

    def added(token_id: int, *, special: bool) -> AddedToken:
        token = tokens[token_id]
        strips = {"lstrip": token in left, "rstrip": token in right}
        return AddedToken(token, special=special, normalized=False, **strips)

    tokenizer.add_special_tokens([added(token_id, special=True) for token_id in vocabulary.special])
    tokenizer.add_tokens([added(token_id, special=False) for token_id in vocabulary.user_defined])
    around = {"first": first, "last": last}
    ids = {name: token_id for name, token_id in around.items() if token_id is not None}
    if ids:
        before, after = (["first"] if first is not None else []), (["last"] if last is not None else [])
        tokenizer.post_processor = TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[
                {"id": name, "ids": [token_id], "tokens": [tokens[token_id]]} for name, token_id in ids.items()
            ],
        )
    return tokenizer


def _stripping(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[frozenset[str], frozenset[str]]:
    """Tokens that take the spaces before them, and those that take the ones after; llama.cpp goes by names."""
    pre = text(metadata, "pre") or ""
    architecture, name = (str(metadata.get(f"general.{key}", "")) for key in ("architecture", "name"))
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return frozenset({"<mask>"}), frozenset()
    if any(part in name.lower() for part in ("phi-3", "phi3")):
        tokens = {vocabulary.tokens[token_id] for token_id in (*vocabulary.special, *vocabulary.user_defined)}
        return frozenset(), frozenset(tokens - {"<unk>", "<s>", "<|endoftext|>"})
    return frozenset({"[MASK]"} if "modern-bert" in name.lower() else ()), frozenset()
