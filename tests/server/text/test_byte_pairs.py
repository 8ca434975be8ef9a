"""The native encoder has the tokens of the `tokenizers` library."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import normalizers

from rbee.server.text.byte_pairs import native_encoder
from rbee.server.text.tokenizer import TooManyTokensError
from tests.server.text import character_classes
from tests.server.text.byte_pairs_parts import BY_LIBRARY, CODECS, TEXTS, TOKENIZERS

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 10**9


@pytest.mark.parametrize("name", TOKENIZERS)
@given(TEXTS, st.booleans())
@example("", True)
@example("a" * 20_000 + " " * 20_000, False)
@example("><|end|>\u0338\u0301", True)
def test_every_text_has_the_same_tokens(name, text, add_special_tokens):
    """Whatever stands around it."""
    ids = TOKENIZERS[name].encode(text, add_special_tokens=add_special_tokens).ids
    assert CODECS[name].encode(text, add_special_tokens=add_special_tokens) == ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_texts_are_tokenized_natively(name):
    """Or the test above would compare the library with itself."""
    encoder = native_encoder(TOKENIZERS[name])
    assert encoder is not None
    text = "I'll say 1234 naïve 你好\r\n\n  x<|end|>"
    assert encoder.encode(text, MANY) == TOKENIZERS[name].encode(text, add_special_tokens=False).ids


class _Many(NamedTuple):
    """A text has too many tokens, at least so many."""

    found: int


def _tokens(encode: Callable[..., list[int]], given: Any, **options: Any) -> list[int] | _Many:
    try:
        return encode(given, **options)
    except TooManyTokensError as error:
        return _Many(error.found)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.booleans(), st.integers(0, 40))
@example(["a"], True, 1)
@example([""], True, 1)
def test_limits_and_pieces_are_the_library_s(name, pieces, add_special_tokens, limit):
    """What stands around a text counts, and may alone be too much."""
    options = {"add_special_tokens": add_special_tokens, "limit": limit}
    ours, others = CODECS[name], BY_LIBRARY[name]
    assert _tokens(ours.encode, pieces[0], **options) == _tokens(others.encode, pieces[0], **options)
    assert _tokens(ours.encode_pieces, pieces, **options) == _tokens(others.encode_pieces, pieces, **options)


def test_the_classes_of_characters_are_the_library_s():
    """Or a newer library knows more: run `python -m tests.server.text.character_classes`."""
    assert character_classes.content() == character_classes.HEADER.read_text()


@pytest.mark.parametrize("name", ["smollm", "GGUF smollm"])
def test_a_digit_that_is_new_in_unicode(name):
    """Of version 17, which the step Digits of tokenizers 0.23 knows, and its regular expressions do not."""
    text = "a\U00011de1b \U00011de1\U00011de1"
    assert CODECS[name].encode(text, add_special_tokens=False) == TOKENIZERS[name].encode(text).ids


def test_normalization_changes_no_text_that_is_taken_as_it_is():
    """No accepted character is changed alone, moves behind another one, or joins the one before it."""
    encoder = native_encoder(TOKENIZERS["qwen2"])
    assert encoder is not None
    accepted = [
        code
        for code in range(0x110000)
        if code not in range(0xD800, 0xE000) and encoder.encode(chr(code), MANY) is not None
    ]
    assert len(accepted) > 40_000
    normalizer, joins = normalizers.NFC(), set()
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joins.add(int(parts[1], 16))
    joins |= {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # of Hangul
    assert not joins & set(accepted)
    assert not [code for code in accepted if unicodedata.combining(chr(code))]
    text = "".join(map(chr, accepted))
    assert normalizer.normalize_str(text) == text


def test_a_text_that_normalization_may_change_is_left_to_the_library():
    """A letter and its accent become one."""
    encoder = native_encoder(TOKENIZERS["qwen2"])
    assert encoder is not None
    assert encoder.encode("e\u0301", MANY) is None


def test_half_a_character_is_left_to_the_library():
    """It has its own refusal."""
    encoder = native_encoder(TOKENIZERS["gpt2"])
    assert encoder is not None
    assert encoder.encode("\ud800", MANY) is None
