"""Of the ways to merge a piece out of two others, only the one that happens is in the tokenizer of a GGUF file."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from rbee.models.gguf.tokenizer import tokenizer_files
from rbee.models.gguf.tokenizer._merges import merges_of  # noqa: TID251 - what is under test
from rbee.models.gguf.tokenizer.vocabulary import Kind
from tests.models.gguf.tokenizer_parts import build_tokenizer, sentence_pieces

LETTERS = "abc\u00e9\u2581"


def with_all_merges(scores: dict[str, float]) -> Tokenizer:
    """A tokenizer that has each pair of pieces that together are one, the best piece first, then the longest."""
    ids = {piece: number for number, piece in enumerate(scores)}
    best_first = sorted(scores, key=lambda piece: (-scores[piece], -len(piece), ids[piece]))
    pairs = [(piece[:cut], piece[cut:]) for piece in best_first for cut in range(len(piece) - 1, 0, -1)]
    return Tokenizer(models.BPE(ids, [(left, right) for left, right in pairs if left in ids and right in ids]))


@example(seed=0, num_scores=1, text="aaaaaaa")
@given(seed=st.integers(0, 10**9), num_scores=st.sampled_from([1, 3, 1000]), text=st.text(LETTERS, max_size=40))
def test_one_merge_for_each_piece_gives_the_tokens_that_all_merges_give(seed: int, num_scores: int, text: str) -> None:
    """For any text, pieces and scores, few different ones among them."""
    rng = random.Random(seed)
    letters = rng.sample(LETTERS, rng.randrange(1, len(LETTERS) + 1))
    words = {"".join(rng.choices(letters, k=rng.randrange(2, 7))) for _ in range(40)}
    scores = {piece: -float(rng.randrange(num_scores)) for piece in rng.sample(sorted({*letters, *words}), len(words))}
    tokenizer = build_tokenizer(sentence_pieces(scores, add_space_prefix=False, add_bos_token=False))
    text = "".join(letter for letter in text if letter in scores)
    assert tokenizer.encode(text).tokens == with_all_merges(scores).encode(text).tokens
    merges = merges_of(list(scores))
    assert len({merge.replace(" ", "") for merge in merges}) == len(merges)


@pytest.mark.parametrize(
    ("pieces", "merges"),
    [
        (["a", "b", "ab", "aba", "ba"], ["a b", "ab a", "b a"]),  # not a|ba, as ab is better
        (["a", "b", "ba", "aba", "ab"], ["b a", "a ba", "a b"]),
        (["a", "aa", "aaa", "aaaa"], ["a a", "aa a", "aa aa"]),
        (["aaaa", "aaa", "aa", "a"], ["aaa a", "aa a", "a a"]),
        (["ab", "abc", "bc", "a", "b", "c"], ["a b", "ab c", "b c"]),
        (["ab", "a", "b", "bc", "c", "xbc", "abcx"], ["a b", "b c"]),  # no x, and nothing that makes abcx
        (["ab", "cd", "bcd", "abcd", *"abcd"], ["a b", "c d", "b cd", "ab cd"]),
        (["bc", "ab", "abc", *"ab"], ["a b"]),  # c is no piece
        (["\u00e9\u2581", "\u00e9", "\u2581", "", "\U0001f41d"], ["\u00e9 \u2581"]),
        ([], []),
    ],
)
def test_the_merge_that_happens(pieces: list[str], merges: list[str]) -> None:
    """It is the last one in the piece's own text, the best first and the leftmost of equals."""
    assert merges_of(pieces) == merges


def last_merge(piece: str, ranks: dict[str, int]) -> str | None:
    """The two parts of `piece` that its last merge joins, as llama.cpp merges, step by step."""
    parts = [*piece]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        best = min(joined)
        if best == len(ranks):
            return None
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return " ".join(parts) if len(parts) == 2 and ranks.keys() >= {*parts} else None


@given(seed=st.integers(0, 10**9), num_letters=st.integers(1, 3), longest=st.sampled_from([5, 20, 80]))
def test_pieces_of_any_length_are_merged_step_by_step(seed: int, num_letters: int, longest: int) -> None:
    """Also where many offers of merges are outdated before the last merge."""
    rng = random.Random(seed)
    pieces = [*LETTERS[:num_letters]]
    for _ in range(60):
        joined = "".join(rng.choices(pieces, k=rng.randrange(2, 5)))
        if len(joined) <= longest and joined not in pieces:
            pieces.append(joined)
    rng.shuffle(pieces)
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    expected = [merge for piece in pieces if len(piece) > 1 and (merge := last_merge(piece, ranks)) is not None]
    assert merges_of(pieces) == expected


def test_a_piece_of_a_million_characters_is_merged() -> None:
    """In n log n steps: with the square of n this test would not end."""
    halves = ["a" * 2**power for power in range(20)]
    merges = merges_of(["a" * 2**20, *halves])
    assert len(merges) == 20
    assert merges[0] == f"{halves[-1]} {halves[-1]}"


def test_a_text_that_is_no_unicode_is_refused() -> None:
    """Half of a character has no UTF-8."""
    with pytest.raises(UnicodeEncodeError):
        merges_of(["a", "\ud800"])


def test_spaces_in_pieces_need_no_merge() -> None:
    """A text has none where it is merged; Gemma's vocabulary has pieces with some."""
    pieces = {"a": -1.0, " ": -2.0, "  ": -3.0, "  a": -4.0, "\u2581": -5.0, "\u2581\u2581": -6.0}
    metadata = sentence_pieces(pieces, add_bos_token=False, add_space_prefix=False)
    assert build_tokenizer(metadata).encode("a  a").tokens == ["a", "\u2581\u2581", "a"]
    metadata["tokenizer.ggml.token_type"][-4] = Kind.USER_DEFINED
    assert build_tokenizer(metadata).encode("a  a").tokens == ["a", "  ", "a"]


@pytest.mark.parametrize("word", ["#version", "version#"])
def test_a_piece_that_begins_as_a_comment_is_merged(word: str) -> None:
    """Lines of merges that begin so are no merges for the library."""
    pieces = {*word, "s", *(word[:end] for end in range(2, len(word) + 1)), word + "s"}
    scores = {piece: float(len(piece)) for piece in sorted(pieces)}
    metadata = sentence_pieces(scores, add_bos_token=False, add_space_prefix=False)
    assert build_tokenizer(metadata).encode(word + "s").tokens == [word + "s"]
    merge = json.loads(tokenizer_files(metadata)["tokenizer.json"])["model"]["merges"][0]
    assert merge == ([word, "s"] if word.startswith("#") else f"{word} s")
