"""Tokenizers of small vocabularies: what text becomes which token, and what is put around a text."""

from __future__ import annotations

import json
import logging
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.models.gguf.tokenizer import special_token_ids, tokenizer_files
from rbee.models.gguf.tokenizer.splits import split_of
from rbee.models.gguf.tokenizer.vocabulary import Kind
from rbee.server.text.detokenizer import detokenizers
from tests.models.gguf.tokenizer_parts import (
    build_tokenizer,
    byte_level,
    merge_by_score,
    sentence_pieces,
    unigrams,
    word_pieces,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of `text`, with what is put around it."""
    return [str(tokenizer.id_to_token(token_id)) for token_id in tokenizer.encode(text).ids]


def merged(scores: dict[str, float], text: str) -> list[str]:
    """The tokens of `text`, to which no space is added, in a vocabulary of these scores."""
    tokenizer = build_tokenizer(sentence_pieces(scores, add_space_prefix=False, add_bos_token=False))
    return tokens_of(tokenizer, text)


@given(st.integers(0, 10**9), st.text("abc ", max_size=30))
def test_scores_decide_which_pieces_merge_first(seed: int, text: str) -> None:
    """With different scores the tokens are those that llama.cpp's way of merging gives, for any scores at all."""
    rng = random.Random(seed)
    pieces = {*"abc\u2581", *("".join(rng.choice("abc\u2581") for _ in range(rng.randrange(2, 6))) for _ in range(25))}
    scores = {piece: -float(rank) for rank, piece in enumerate(rng.sample(sorted(pieces), len(pieces)))}
    assert merged(scores, text) == merge_by_score(text.replace(" ", "\u2581"), scores)


@given(st.lists(st.sampled_from("ab") | st.integers(1, 40).map(lambda count: " " * count)), st.integers(2, 16))
def test_runs_of_spaces_of_one_score_grow_from_the_left(parts: list[str], longest: int) -> None:
    """Llama 2's runs of two to sixteen spaces all have one score; another vocabulary may have fewer of them."""
    text = "".join(parts)
    scores = {"\u2581": -1e9, "a": -5.0, "b": -6.0, "\u2581a": -2.0, "ab": -3.0, "\u2581b": -4.0}
    scores |= {"\u2581" * length: -1e9 for length in range(2, longest + 1)}
    assert merged(scores, text) == merge_by_score(text.replace(" ", "\u2581"), scores)


def test_sentencepiece_puts_a_space_before_text_that_begins_and_after_special_tokens() -> None:
    """Unless the file says that it does not; bytes stand for characters that are no token."""
    metadata = sentence_pieces()
    assert tokens_of(build_tokenizer(metadata), "ab</s>a b") == [
        "<s>",
        "\u2581a",
        "b",
        "</s>",
        "\u2581a",
        "\u2581",
        "b",
    ]
    assert tokens_of(build_tokenizer(metadata), "") == ["<s>"]
    plain = build_tokenizer(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert tokens_of(plain, "ab\u00e9</s>a") == ["<s>", "ab", "<0xC3>", "<0xA9>", "</s>", "a"]


@pytest.mark.parametrize(
    ("pre", "changes", "around"),
    [
        ("gpt-2", {}, []),
        ("llama-bpe", {}, ["<s>"]),
        ("falcon3", {}, ["<s>"]),
        ("lfm2", {}, ["<s>"]),
        ("pixtral", {}, ["<s>"]),
        ("tekken", {}, ["<s>"]),
        ("tekken", {"add_bos_token": False}, []),
        ("gpt-2", {"add_bos_token": True}, ["<s>"]),
        ("gpt-2", {"add_bos_token": True, "add_eos_token": True}, ["<s>", "</s>"]),
        ("gpt-2", {"add_eos_token": True, "eos_token_id": 10**9}, [","]),  # llama.cpp's default, 11
        ("gemma4", {"add_bos_token": False}, ["<s>"]),
        ("glm4", {"add_bos_token": True, "bos_token_id": 2**32 - 1}, []),
    ],
)
def test_what_is_put_around_a_text(pre: str, changes: dict[str, Any], around: list[str]) -> None:
    """The kind of split has a default for BOS, which the file may change; an id beyond the vocabulary is none."""
    special = [("<s>", Kind.CONTROL), ("</s>", Kind.CONTROL)]
    metadata = byte_level(*special, pre=pre, **{"bos_token_id": 258, "eos_token_id": 259} | changes)
    assert tokens_of(build_tokenizer(metadata), "") == around
    assert build_tokenizer(metadata).encode("ab", add_special_tokens=False).tokens == ["ab"]


def test_special_and_user_defined_tokens() -> None:
    """Both are found in any text; only the special ones are left out when it is decoded. No id is beyond the list."""
    metadata = byte_level(("<|im_end|>", Kind.NORMAL), ("<go>", Kind.USER_DEFINED), ("   ", Kind.USER_DEFINED))
    tokenizer = build_tokenizer(metadata)
    ids = tokenizer.encode("a<|im_end|><go>   b<|endoftext|>").ids
    assert [tokenizer.id_to_token(token_id) for token_id in ids][:5] == ["a", "<|im_end|>", "<go>", "   ", "b"]
    assert tokenizer.decode(ids) == "a<go>   b<|endoftext|>"
    assert max(ids) < tokenizer.get_vocab_size() == len(metadata["tokenizer.ggml.tokens"])


def test_user_defined_letters_stand_for_themselves() -> None:
    """DeepSeek has an added token \u00f5, whose letter also is the name of a byte."""
    tokenizer = build_tokenizer(byte_level(("<go>", Kind.CONTROL), ("\u00f5\u00f5", Kind.USER_DEFINED)))
    [token_id] = tokenizer.encode("\u00f5\u00f5").ids
    assert detokenizers(tokenizer)().push(token_id) == "\u00f5\u00f5"


@pytest.mark.parametrize("metadata", [byte_level(), sentence_pieces(), word_pieces()])
def test_a_vocabulary_is_sorted_in_tokenizer_json(metadata: dict[str, Any]) -> None:
    """By the tokens' UTF-8, so that it is read in less time; each keeps its id."""
    vocabulary: dict[str, int] = json.loads(tokenizer_files(metadata)["tokenizer.json"])["model"]["vocab"]
    assert [*vocabulary] == sorted(vocabulary, key=str.encode)
    assert vocabulary == {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}


def test_an_empty_token_has_a_name_and_shifts_no_id() -> None:
    """It is called by its number, as in llama.cpp."""
    metadata = byte_level(("", Kind.NORMAL), ("last", Kind.CONTROL))
    assert build_tokenizer(metadata).encode("last").ids == [259]
    assert build_tokenizer(metadata).id_to_token(258) == "[EMPTY_258]"


def test_a_byte_that_is_no_token_is_dropped_and_nothing_merges_over_it() -> None:
    """As in llama.cpp: a|b, not ab."""
    metadata = byte_level()
    kept = [token for token in metadata["tokenizer.ggml.tokens"] if token != "x"]
    metadata |= {"tokenizer.ggml.tokens": kept, "tokenizer.ggml.token_type": np.ones(len(kept), np.int32)}
    assert tokens_of(build_tokenizer(metadata), "axb ab") == ["a", "b", "\u0120", "ab"]


def test_of_a_merge_that_is_there_twice_the_first_counts() -> None:
    """Its rank is not that of the second."""
    tokens = [("bc", Kind.NORMAL)]
    once = build_tokenizer(byte_level(*tokens, merges=["a b", "b c"]))
    twice = build_tokenizer(byte_level(*tokens, merges=["a b", "b c", "a b"]))
    assert tokens_of(once, "abc") == tokens_of(twice, "abc") == ["ab", "c"]


def test_a_file_that_names_no_split_gets_the_default_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """As in llama.cpp, which serves it too."""
    with caplog.at_level(logging.WARNING):
        tokenizer = build_tokenizer(byte_level(pre=""))
    assert "does not say how its tokenizer splits words" in caplog.text
    assert tokenizer.pre_tokenizer.pre_tokenize_str("1234")[0][0] == "123"


def test_ends_of_a_generation() -> None:
    """The EOS token, those that the file names, and those that are known by their text."""
    known = [("<|im_end|>", Kind.CONTROL), ("<|file_sep|>", Kind.NORMAL), ("<other>", Kind.CONTROL)]
    metadata = byte_level(*known, eos_token_id=3, eot_token_id=260)
    assert special_token_ids(metadata).ends == {3, 258, 259, 260}
    assert special_token_ids(byte_level()) == (11, 11, frozenset({11}))


def test_gpt_oss_ends_no_generation_with_a_message() -> None:
    """Where <|return|> and <|call|> are tokens, <|end|> is one of the tokens that a client sees."""
    names = ("<|end|>", "<|return|>", "<|call|>", "<|channel|>", "<|message|>")
    metadata = byte_level(*((name, int(Kind.CONTROL)) for name in names), eos_token_id=259)
    assert special_token_ids(metadata).ends == {259, 260}
    tokenizer = build_tokenizer(metadata)
    assert tokenizer.decode(tokenizer.encode("<|channel|>a<|end|><|return|>").ids) == "<|channel|>a<|end|>"


def test_gemma_4_has_an_ordinary_end_of_sequence_token() -> None:
    """There </s> is a word of HTML."""
    names = ("</s>", "<|tool_response>")
    metadata = byte_level(*((name, int(Kind.CONTROL)) for name in names), eos_token_id=259)
    assert special_token_ids(metadata).ends == {259}
    assert len(build_tokenizer(metadata).encode("</s>").ids) == 4


def test_phi_3_strips_spaces_after_its_special_tokens() -> None:
    """Except after <s>, <unk> and <|endoftext|>."""
    added = [("<|end|>", Kind.CONTROL), ("<s>", Kind.CONTROL)]
    metadata = byte_level(*added) | {"general.name": "Phi-3 mini"}
    assert tokens_of(build_tokenizer(metadata), "<|end|> \na<s> b") == ["<|end|>", "a", "<s>", "\u0120", "b"]


def test_unigrams_choose_the_best_sum_of_scores() -> None:
    """Spaces merge if the file wants that, and what is no piece is one unknown token."""
    metadata = unigrams(add_space_prefix=True)
    assert tokens_of(build_tokenizer(metadata), "ab  zz") == ["\u2581", "ab", "\u2581", "\u2581", "<unk>", "</s>"]
    metadata |= {"tokenizer.ggml.remove_extra_whitespaces": True}
    assert tokens_of(build_tokenizer(metadata), " a  b ") == ["\u2581a", "\u2581", "b", "</s>"]


def test_word_pieces_find_the_longest_piece() -> None:
    """In lower case without accents; a word that cannot be made of pieces is unknown."""
    tokenizer = build_tokenizer(word_pieces())
    assert tokens_of(tokenizer, "\u00c4BA,b x") == [
        "[CLS]",
        "\u2581a",
        "b",
        "a",
        "\u2581,",
        "\u2581b",
        "[UNK]",
        "[SEP]",
    ]


def test_splits_that_share_their_words() -> None:
    """These are other names of a split that the vocabularies show."""
    assert split_of("granite-embed-multi-311m") == split_of("gemma4")
    assert split_of("smollm") == split_of("starcoder")
