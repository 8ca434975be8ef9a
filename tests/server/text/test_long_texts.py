"""Texts that have more tokens than there may be are not tokenized to their end."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from rbee.server.text.tokenizer import TextCodec, TooManyTokensError

LIMIT = 1000


class CountingTokenizer:
    """The tokenizer of one token per word, which knows how many characters it was given."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        self._tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.characters = 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts, **options):
        """Counts."""
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts, **options)


@pytest.fixture
def tokenizer():
    """A fresh one."""
    return CountingTokenizer()


@pytest.fixture
def codec(tokenizer):
    """On this tokenizer."""
    return TextCodec(tokenizer)


def test_what_fits_is_whole(codec, tokenizer):
    """However long its words are."""
    assert codec.encode("a " * LIMIT, add_special_tokens=True, limit=LIMIT) == [0] * LIMIT
    assert tokenizer.characters == 2 * LIMIT
    text = ("a" + " " * 99) * LIMIT
    assert codec.encode(text, add_special_tokens=True, limit=LIMIT) == [0] * LIMIT


@pytest.mark.parametrize("word", ["a ", "a" + " " * 9, "a" + " " * 99])
def test_what_does_not_fit_is_tokenized_as_far_as_shows_it(codec, tokenizer, word):
    """Of two million words some thousands are looked at."""
    with pytest.raises(TooManyTokensError) as caught:
        codec.encode(word * 2_000_000, add_special_tokens=True, limit=LIMIT)
    assert caught.value.found > LIMIT
    assert tokenizer.characters < 5 * LIMIT * max(len(word), 8)


def test_a_token_too_many(codec):
    """The bound is exact."""
    with pytest.raises(TooManyTokensError) as caught:
        codec.encode("a " * (LIMIT + 1), add_special_tokens=True, limit=LIMIT)
    assert caught.value.found == LIMIT + 1


def test_pieces_count_together(codec):
    """And follow each other."""
    assert codec.encode_pieces(["a b", "", "a"]) == [0, 1, 0]
    assert codec.encode_pieces(["a a", "a"], limit=3) == [0, 0, 0]
    with pytest.raises(TooManyTokensError):
        codec.encode_pieces(["a a", "a a"], limit=3)
