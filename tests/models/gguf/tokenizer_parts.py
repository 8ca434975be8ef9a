"""Metadata of small vocabularies, one of each kind, and llama.cpp's SentencePiece merging in plain Python."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from rbee.models.gguf.tokenizer import tokenizer_files
from rbee.models.gguf.tokenizer.vocabulary import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that these metadata describe, as a server reads it."""
    return Tokenizer.from_buffer(tokenizer_files(metadata)["tokenizer.json"])


def vocabulary(model: str, tokens: Mapping[str, int], **others: object) -> dict[str, Any]:
    """Metadata of tokens and their kinds."""
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": np.array(list(tokens.values()), np.int32),
        **{f"tokenizer.ggml.{key}": value for key, value in others.items()},
    }


def byte_level(*added: tuple[str, int], **others: object) -> dict[str, Any]:
    """All bytes, two merges, and what is added."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, "ab", "\u0120a"], Kind.NORMAL) | dict(added)
    return vocabulary("gpt2", tokens, **{"pre": "gpt-2", "merges": ["a b", "\u0120 a"], **others})


def sentence_pieces(scores: Mapping[str, float] | None = None, **others: object) -> dict[str, Any]:
    """<unk>, <s>, </s>, all bytes, and the tokens of `scores`."""
    pieces = {"\u2581": -1.0, "a": -2.0, "b": -3.0, "\u2581a": -4.0, "ab": -5.0} if scores is None else dict(scores)
    tokens: dict[str, int] = {"<unk>": Kind.UNKNOWN, "<s>": Kind.CONTROL, "</s>": Kind.CONTROL}
    tokens |= dict.fromkeys(BYTES, Kind.BYTE) | dict.fromkeys(pieces, Kind.NORMAL)
    values = np.array([pieces.get(token, 0.0) for token in tokens], np.float32)
    return vocabulary("llama", tokens, **{"scores": values, **others})


def unigrams(**others: object) -> dict[str, Any]:
    """<pad>, </s>, <unk> and some pieces."""
    pieces = {"\u2581": -2.0, "a": -3.0, "b": -3.5, "\u2581a": -3.0, "ab": -4.0}
    tokens: dict[str, int] = {"<pad>": Kind.CONTROL, "</s>": Kind.CONTROL, "<unk>": Kind.UNKNOWN}
    tokens |= dict.fromkeys(pieces, Kind.NORMAL)
    values = np.array([pieces.get(token, 0.0) for token in tokens], np.float32)
    return vocabulary("t5", tokens, **{"scores": values, **others})


def word_pieces(**others: object) -> dict[str, Any]:
    """[UNK], [CLS], [SEP] and some pieces."""
    tokens: dict[str, int] = {"[UNK]": Kind.CONTROL, "[CLS]": Kind.CONTROL, "[SEP]": Kind.CONTROL}
    tokens |= dict.fromkeys(["\u2581a", "\u2581b", "a", "b", "\u2581,"], Kind.NORMAL)
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    return vocabulary("bert", tokens, **ids, **others)


def merge_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """Merge two neighbours that are a token until there are none, the highest score first, the leftmost of equals."""
    symbols: list[str] = list(text)
    following = list(range(1, len(text) + 1))
    before = list(range(-1, len(text) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < len(symbols) and symbols[left] + symbols[right] in scores:
            joined = symbols[left] + symbols[right]
            heapq.heappush(queue, (-scores[joined], left, right, joined))

    for right in range(1, len(symbols)):
        offer(right - 1, right)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
            continue
        symbols[left], symbols[right] = joined, ""
        following[left] = following[right]
        if following[right] < len(symbols):
            before[following[right]] = left
        offer(before[left], left)
        offer(left, following[left])
    return [symbol for symbol in symbols if symbol]
