"""Texts on which tokenizers differ easily, the same ones on every machine, and how their token ids are compared.

The ids that llama.cpp gives are kept as a digest for each group of texts: data/llama_cpp_tokens.json.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import pre_tokenizers

from rbee.models.gguf.tokenizer.splits import split_names, split_of
from rbee.models.gguf.tokenizer.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

REFERENCE = Path(__file__).parent / "data" / "llama_cpp_tokens.json"
GROUP = 20  # texts of one digest
NUM_TEXTS, NUM_SPLIT_TEXTS = 2000, 400  # for a vocabulary, and for a way to split words

_WORDS = tuple((Path(__file__).parent / "data" / "words.txt").read_text(encoding="utf-8").split())
_SPACES = (
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "     ",
    "\n",
    "\n\n",
    "\n\n\n\n",
    "\t",
    "\t\t ",
    " \n",
    "\n ",
    "\r\n",
    "\r\n\r\n",
    "\r",
    "",
    "",
    "",
)
_ODD_SPACES = (
    "\u00a0",
    "\u3000",
    "\u2003\u2003",
    "\u2028",
    "\u0085",
    "\u1680",
    "\v",
    "\f",
    "\u200b",
    "\ufeff",
    "\u2581",
    " \u2581\u2581",
)
_CODE = (
    "def f(x):\n    return x**2 + y[1:-1]  # ok\n",
    "for (int i = 0; i < n; ++i) { a[i] += b->c; }",
    '{"key": [1, 2.5e-3, null], "s": "\\n"}',
    "<div class='a'>&nbsp;</div>",
    "if (!x && y || ~z) $v = `ls`; // !!",
    "https://example.org/a/b?c=d&e=%20#f",
    "SELECT * FROM t WHERE a >= 'it''s';",
    "\\frac{a}{b} \\mathbb{R}^n",
    "....!!!??? --- *** ___ === //// ,,,, ;;",
    "a/b/ c/ /d //\n/ ./\n",
    "IMGIMGABZ <sentinel:12> {} [] () <> ^^ ||",
)
_CONTROL = (
    "\x00",
    "\x01\x02",
    "\x1b[0m",
    "\x7f",
    "\x80",
    "\x9f",
    "\u200e",
    "\u202e",
    "\ufffd",
    "\ue000",
    "\ufffe",
    "\U0010ffff",
    "\U000e0041",
    "\u0378",
)
_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
    "<unk>",
    "<bos>",
    "<0x0A>",
    "[CLS]",
    "[MASK]",
    "<mask>",
    "<|user|>",
    "<|end|>",
    "<|not_a_token|>",
    "<|im_start",
)


# Where `tokenizers` is known to differ from llama.cpp, by vocabulary: rbee.models.gguf.tokenizer has the reasons.
_NOT_ASCII = tuple(space for space in _ODD_SPACES if space.isspace() and not space.isascii())
_NOT_FOR = {"phi-3": _NOT_ASCII, "nomic-bert-moe": (*_NOT_ASCII, "\u0301", "a\u0308\u0323")}


def special_texts(metadata: Mapping[str, Any]) -> list[str]:
    """Texts of up to 60 tokens of the vocabulary that are special or user-defined, and some that may be none."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = np.flatnonzero(np.isin(metadata["tokenizer.ggml.token_type"], (2, 3, 4))).tolist()
    return [*_SPECIALS, *(tokens[token_id] for token_id in ids[:30] + ids[-30:])]


def vocabulary_texts(name: str, metadata: Mapping[str, Any]) -> list[str]:
    """Texts for the vocabulary `name`, with its own special tokens."""
    return texts(NUM_TEXTS, special_texts(metadata), without=_NOT_FOR.get(name, ()))


def texts(count: int, specials: Collection[str] = _SPECIALS, without: Collection[str] = ()) -> list[str]:
    """`count` texts: words of many scripts, code, numbers, runs of spaces, control characters, special tokens."""
    rng = random.Random(5)
    kinds = [_WORDS, _WORDS, _WORDS, _CODE, _ODD_SPACES, _CONTROL, tuple(specials)]
    kinds = [tuple(part for part in kind if part not in without) for kind in kinds]

    def part() -> str:
        kind = rng.randrange(len(kinds) + 2)
        if kind == len(kinds):
            return "".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 14)))
        if kind > len(kinds):
            return rng.choice(" \n\t=-#~'/\u2581") * rng.randrange(1, 40)
        return rng.choice(kinds[kind])

    result = ["", " ", "  ", "\n"]
    while len(result) < count:
        parts = [rng.choice(_SPACES) + part() for _ in range(rng.randrange(1, 12))]
        result.append("".join(parts) + rng.choice(_SPACES))
    return result


def digests(ids: Iterable[Iterable[int]]) -> list[str]:
    """The digest of each group of texts."""
    lists = [list(text_ids) for text_ids in ids]
    groups = [lists[start : start + GROUP] for start in range(0, len(lists), GROUP)]
    return [hashlib.sha256(json.dumps(group).encode()).hexdigest()[:10] for group in groups]


def comparable_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Tokens whose bytes are compared.

    Not unused tokens, which stand for nothing in llama.cpp, nor byte-level ones with letters outside of the alphabet
    for bytes, for which llama.cpp writes a message. No model writes either.
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"].tolist()
    bytes_only = metadata["tokenizer.ggml.model"] == "gpt2"
    return [
        token_id
        for token_id, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != Kind.UNUSED and not (bytes_only and kind == Kind.NORMAL and not alphabet.issuperset(token))
    ]


def digest_of_pieces(pieces: Iterable[bytes]) -> str:
    """The digest of what tokens stand for."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(4) + piece)
    return digest.hexdigest()[:20]


def byte_level_splits() -> list[str]:
    """Values of tokenizer.ggml.pre that one byte-level vocabulary can have."""
    return [name for name in split_names() if split_of(name).byte_level]
