"""Metadata of any kind give a tokenizer or a sentence."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbee.errors import ModelError
from rbee.models.gguf import read_header
from rbee.models.gguf.tokenizer import special_token_ids
from tests.models.gguf.tokenizer_parts import build_tokenizer, byte_level, sentence_pieces, unigrams, word_pieces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "gpt2": byte_level,
    "llama": sentence_pieces,
    "t5": unigrams,
    "bert": word_pieces,
}
_KEYS = (
    *("model", "pre", "tokens", "merges", "scores", "token_type", "precompiled_charsmap", "add_bos_token"),
    *("add_eos_token", "add_space_prefix", "remove_extra_whitespaces", "bos_token_id", "eos_token_id", "eot_token_id"),
    *("unknown_token_id", "seperator_token_id", "fim_pad_token_id", "prefix_token_id", "normalizer.lowercase"),
)
_NUMBERS = st.floats(width=32) | st.integers(-(2**31), 2**31 - 1) | st.integers(0, 2**32 - 1)
_ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    _NUMBERS,
    st.text(max_size=8),
    st.sampled_from(["gpt2", "llama", "t5", "bert", "gemma4", "rwkv", "plamo2", "default", "llama-bpe", "whitespace"]),
    st.lists(st.text(max_size=3), max_size=30),
    st.lists(st.floats(width=32), max_size=300).map(lambda values: np.array(values, np.float32)),
    st.lists(st.integers(-5, 9), max_size=300).map(lambda values: np.array(values, np.int32)),
    st.binary(max_size=40).map(lambda data: np.frombuffer(data, np.uint8)),
    st.lists(st.integers(), max_size=4),
)


@example(kind="t5", changes={"tokens": [""]})  # no token is left for what is unknown
@example(kind="bert", changes={"token_type": np.full(9, 2.0**63, np.float32)})  # fits no whole number
@settings(max_examples=400)
@given(kind=st.sampled_from(sorted(_KINDS)), changes=st.dictionaries(st.sampled_from(_KEYS), _ANYTHING, max_size=4))
def test_any_metadata_give_a_tokenizer_or_a_sentence(kind: str, changes: dict[str, Any]) -> None:
    """Wrong types, missing arrays and lengths that differ are refused; what is not refused works."""
    metadata = _KINDS[kind]() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with contextlib.suppress(ModelError):
        special_token_ids(metadata)
        tokenizer = build_tokenizer(metadata)
        ids = tokenizer.encode("ab <s> Za\n\x00 \u00e9").ids
        assert max(ids, default=0) < len(metadata["tokenizer.ggml.tokens"])
        tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": None}, "has no vocabulary: tokenizer.ggml.model is missing"),
        ({"model": "rwkv"}, "kind 'rwkv'.*are supported"),
        ({"model": "plamo2"}, "kind 'plamo2'.*are supported"),
        ({"pre": "tomorrow"}, "tokenizer.ggml.pre is 'tomorrow'.*newer rbee"),
        ({"pre": 7}, "tokenizer.ggml.pre is int, and a text is expected"),
        ({"tokens": []}, "missing or empty"),
        ({"tokens": ["a", 1]}, "tokenizer.ggml.tokens is list, and a list of texts is expected"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, "the token 'a' twice, as 0 and 2"),
        ({"token_type": np.ones(3, np.int32)}, "3 values in tokenizer.ggml.token_type"),
        ({"token_type": np.ones(300, np.float32)}, "token_type is ndarray, and a list of whole numbers is expected"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["a b", "ab"]}, "'ab', which is no pair"),
        ({"merges": ["a nowhere"]}, "`nowhere` out of vocabulary"),
        ({"bos_token_id": "<s>"}, "bos_token_id is str, and a token id is expected"),
        ({"add_bos_token": 1}, "add_bos_token is int, and true or false is expected"),
    ],
)
def test_refusals_name_what_is_wrong(changes: dict[str, Any], sentence: str) -> None:
    """Each has its own sentence."""
    metadata = byte_level() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ModelError, match=sentence):
        build_tokenizer(metadata)


def test_a_score_that_is_no_number_is_refused() -> None:
    """Neither NaN nor infinity can be put in order and written to a file."""
    for value in (np.nan, np.inf):
        metadata = sentence_pieces()
        metadata["tokenizer.ggml.scores"] = np.full(len(metadata["tokenizer.ggml.tokens"]), value, np.float32)
        with pytest.raises(ModelError, match=r"a value in tokenizer\.ggml\.scores that is no number"):
            build_tokenizer(metadata)


def test_a_charsmap_that_makes_no_sense_is_refused() -> None:
    """Its trie cannot be longer than itself."""
    metadata = unigrams() | {"tokenizer.ggml.precompiled_charsmap": np.full(16, 255, np.uint8)}
    with pytest.raises(ModelError, match="precompiled_charsmap makes no sense"):
        build_tokenizer(metadata)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=2))
def test_a_damaged_charsmap_is_refused_or_works(vocabularies: Path, damages: list[tuple[float, int]]) -> None:
    """No byte of a real one leads a text out of it."""
    damaged = np.array(_charsmap(vocabularies))
    for place, byte in damages:
        damaged[int(place * len(damaged))] = byte
    with contextlib.suppress(ModelError):
        tokenizer = build_tokenizer(unigrams() | {"tokenizer.ggml.precompiled_charsmap": damaged})
        tokenizer.encode("ab \u2460 \ufb01 e\u0301 \uff76\uff9e \ud55c\uad6d\uc5b4 \u0915\u094d\u0937 \U0001f3fd \x00")


@functools.cache
def _charsmap(vocabularies: Path) -> np.ndarray:
    metadata = read_header(vocabularies / "ggml-vocab-nomic-bert-moe.gguf").metadata
    charsmap: np.ndarray = metadata["tokenizer.ggml.precompiled_charsmap"]
    return charsmap
