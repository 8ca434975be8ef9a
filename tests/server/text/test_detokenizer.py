"""Incremental detokenizing equals decoding at once, and withholds nothing that is certain."""

import itertools
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from rbee.models import synthetic
from rbee.server.text.detokenizer import (
    ByteFallbackDetokenizer,
    ByteLevelDetokenizer,
    WindowDetokenizer,
    detokenizers,
)
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, id_of, sentencepiece_like, wordpiece


def detokenize(tokenizer, token_ids):
    """The text, token by token."""
    return push_all(detokenizers(tokenizer)(), token_ids)


def push_all(detokenizer, token_ids):
    """The text, token by token."""
    return "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])


@pytest.fixture(scope="session")
def default_tokenizer(default_model):
    """The default model's tokenizer."""
    return Tokenizer.from_file(str(default_model.path / "tokenizer.json"))


@pytest.fixture(scope="session")
def default_detokenizers(default_tokenizer):
    """Makes its detokenizers."""
    return detokenizers(default_tokenizer)


# Ids from everywhere, many of them bytes that are no characters, specials, and ids that the vocabulary does not have.
DEFAULT_IDS = st.lists(st.one_of(st.integers(0, 49151), st.integers(0, 300), st.integers(49152, 50000)), max_size=40)


@settings(max_examples=300)
@given(DEFAULT_IDS)
def test_default_model_equals_decode(default_tokenizer, default_detokenizers, token_ids):
    """Any ids of the default vocabulary give the text that `decode` gives for all of them at once."""
    assert push_all(default_detokenizers(), token_ids) == default_tokenizer.decode(token_ids, skip_special_tokens=True)


@given(st.text(max_size=60))
def test_default_model_equals_decode_for_real_text(default_tokenizer, default_detokenizers, text):
    """Text as it would be written, most of it characters of several tokens, equals `decode` too."""
    token_ids = default_tokenizer.encode(text).ids
    assert push_all(default_detokenizers(), token_ids) == default_tokenizer.decode(token_ids)


@given(st.binary(max_size=40))
def test_synthetic_model_equals_decode(data):
    """A token is a byte here, so that this is any byte string at all, valid UTF-8 or not."""
    assert detokenize(SYNTHETIC, list(data)) == SYNTHETIC.decode(list(data))


CONTINUATIONS = [bytes(rest) for n in (1, 2, 3) for rest in itertools.product((0x80, 0x90, 0xA0), repeat=n)]


def begins_a_character(tail):
    """Whether more bytes can make `tail` one character."""
    return any(is_character(tail + rest) for rest in CONTINUATIONS)


def is_character(data):
    """Whether these bytes are one character."""
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@given(st.one_of(st.binary(max_size=12), st.text(max_size=6).map(str.encode)))
def test_withholds_an_incomplete_character_and_nothing_else(data):
    """After every token, all is shown but the bytes that begin a character and do not complete it.

    Left out: the first two bytes of a surrogate, for which the standard library's decoder waits in vain.
    """
    assume(not re.search(rb"\xed[\xa0-\xbf]", data))
    detokenizer = detokenizers(SYNTHETIC)()
    shown = ""
    for end, byte in enumerate(data, start=1):
        shown += detokenizer.push(byte)
        incomplete = next((k for k in (3, 2, 1) if k <= end and begins_a_character(data[end - k : end])), 0)
        assert shown == data[: end - incomplete].decode(errors="replace")


def test_an_emoji_of_four_tokens_appears_whole_with_the_fourth():
    """Nothing, nothing, nothing, then the emoji: never a part of it, and not one token later."""
    detokenizer = detokenizers(SYNTHETIC)()
    assert [detokenizer.push(byte) for byte in "🐝".encode()] == ["", "", "", "🐝"]


def test_an_incomplete_character_at_the_end_is_not_lost():
    """A sequence that ends inside a character ends in a replacement character, as `decode` has it."""
    assert detokenize(SYNTHETIC, list("bee 🐝".encode()[:-1])) == "bee \ufffd"


def byte_ids(tokenizer, data):
    """The byte tokens that spell `data`."""
    return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]


@pytest.mark.parametrize("strip", [False, True])
@given(data=st.data())
def test_byte_fallback_equals_decode(strip, data):
    """Words, specials and characters spelled in bytes, in any order, equal `decode`."""
    tokenizer = SENTENCEPIECE[strip]
    word = st.sampled_from([*range(9), tokenizer.token_to_id("<s>"), tokenizer.token_to_id("▁added word"), 9999])
    spelled = st.text(min_size=1, max_size=3).map(lambda text: byte_ids(tokenizer, text.encode()))
    pieces = data.draw(st.lists(st.one_of(word.map(lambda token_id: [token_id]), spelled), max_size=12))
    token_ids = [token_id for piece in pieces for token_id in piece]
    assert detokenize(tokenizer, token_ids) == tokenizer.decode(token_ids, skip_special_tokens=True)


@given(st.lists(st.one_of(st.integers(1, 7), st.binary(min_size=1, max_size=5)), max_size=10))
def test_byte_fallback_replaces_invalid_bytes_only(pieces):
    """Bytes that are no character become U+FFFD one by one; complete characters beside them stay."""
    tokenizer = SENTENCEPIECE[False]
    token_ids, expected, run = [], "", b""
    for piece in [*pieces, 0]:
        if isinstance(piece, bytes):
            token_ids += byte_ids(tokenizer, piece)
            run += piece
        else:
            token_ids.append(piece)
            expected += run.decode(errors="replace") + tokenizer.id_to_token(piece).replace("▁", " ")
            run = b""
    assert detokenize(tokenizer, token_ids) == expected


def test_byte_fallback_shows_a_spelled_character_with_its_last_byte():
    """Not a token later, although a further byte token could follow."""
    tokenizer = SENTENCEPIECE[True]
    detokenizer = detokenizers(tokenizer)()
    assert [detokenizer.push(token_id) for token_id in byte_ids(tokenizer, "é🐝".encode())] == [
        "",
        "é",
        "",
        "",
        "",
        "🐝",
    ]


def test_byte_fallback_strips_the_first_space_that_is_shown():
    """A special token or a part of a character before it does not count."""
    tokenizer = SENTENCEPIECE[True]
    hello, start = tokenizer.token_to_id("▁Hello"), tokenizer.token_to_id("<s>")
    assert detokenize(tokenizer, [start, hello, hello]) == "Hello Hello"


def test_added_tokens_of_a_byte_level_vocabulary():
    """Their text is not written in its alphabet."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_tokens([AddedToken("hé wörld 🐝", special=False)])
    token_ids = [65, 256, 0xF0, 256]
    assert detokenize(tokenizer, token_ids) == tokenizer.decode(token_ids) == "Ahé wörld 🐝\ufffdhé wörld 🐝"


@given(st.lists(st.integers(0, 5), max_size=12))
def test_other_decoders_equal_decode(token_ids):
    """A WordPiece vocabulary, whose spaces depend on the neighbours, equals `decode` too."""
    tokenizer = wordpiece()
    assert detokenize(tokenizer, token_ids) == tokenizer.decode(token_ids, skip_special_tokens=True)


@given(st.lists(st.integers(0, 7), max_size=12))
def test_other_decoders_show_special_tokens_on_request(token_ids):
    """As `decode` writes them, or with no space between two of them."""
    tokenizer = wordpiece()
    tokenizer.add_special_tokens([AddedToken("[CLS]", special=True), AddedToken("[SEP]", special=True)])
    shown = push_all(detokenizers(tokenizer)(skip_special_tokens=False), token_ids)
    assert shown == tokenizer.decode(token_ids, skip_special_tokens=False)
    joined = detokenizers(tokenizer)(skip_special_tokens=False, spaces_between_special_tokens=False)
    assert push_all(joined, token_ids) == re.sub(r"(?<=\[(CLS|SEP)\]) (?=\[(CLS|SEP)\])", "", shown)


BYTES_WITHOUT_SPACES = sentencepiece_like(strip=False)
BYTES_WITHOUT_SPACES.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])


@given(st.lists(st.text(min_size=1, max_size=3) | st.just(None), max_size=8))
def test_other_decoders_withhold_incomplete_characters(pieces):
    """Characters spelled in bytes, with special tokens between them, are never cut."""
    tokenizer = BYTES_WITHOUT_SPACES
    start = id_of(tokenizer, "<s>")
    token_ids = [
        token_id for piece in pieces for token_id in (byte_ids(tokenizer, piece.encode()) if piece else [start])
    ]
    detokenizer = detokenizers(tokenizer)()
    shown = [detokenizer.push(token_id) for token_id in token_ids]
    assert "".join([*shown, detokenizer.flush()]) == tokenizer.decode(token_ids)
    assert "\ufffd" in tokenizer.decode(token_ids) or not any("\ufffd" in text for text in shown)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=4))
def test_other_decoders_survive_garbage(pieces):
    """Bytes that are no characters are shown as something, sooner or later, and break nothing."""
    detokenizer = detokenizers(BYTES_WITHOUT_SPACES)()
    for piece in pieces:
        for token_id in byte_ids(BYTES_WITHOUT_SPACES, piece):
            detokenizer.push(token_id)
    assert len(detokenizer.flush()) <= 16


def test_an_incomplete_end_is_not_lost_by_other_decoders():
    """What is withheld comes with the end."""
    token_ids = [5, *byte_ids(BYTES_WITHOUT_SPACES, b"\xf0\x9f")]
    assert detokenize(BYTES_WITHOUT_SPACES, token_ids) == "é" + "\ufffd" * 2 == BYTES_WITHOUT_SPACES.decode(token_ids)


@pytest.mark.parametrize("word", ["a b", "caf\u00e9\u00ad", "\u00a0", "\u0100\u2581", "\n"])
def test_added_word_of_other_characters_is_itself(word):
    """A byte-level vocabulary's alphabet has no space and no control characters: a token with one is plain text."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_tokens([AddedToken(word, special=False)])
    token_id = id_of(tokenizer, word)
    assert detokenize(tokenizer, [65, token_id, 66]) == tokenizer.decode([65, token_id, 66])


LETTERS = st.text(min_size=1, max_size=4) | st.text("ab\u0120\u010a\u2581<0xfF>", min_size=1, max_size=6)


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), SENTENCEPIECE[False].decoder])
@given(names=st.sets(LETTERS, max_size=8), first=st.integers(0, 3), step=st.integers(1, 3))
def test_whatever_tokens_are_called(decoder, names, first, step):
    """Each has the bytes that `decode` gives for it alone, and an id that no token has has none."""
    ids = {"<unk>": 100} | {name: first + step * number for number, name in enumerate(sorted(names))}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<unk>"))
    tokenizer.decoder = decoder
    found = detokenizers(tokenizer)
    for token_id in range(102):
        assert found.token_bytes(token_id).decode(errors="replace") == tokenizer.decode([token_id])
    assert len(found.table.vocabulary) == 101


def test_an_id_that_no_token_has_changes_nothing_around_it():
    """Neither between the bytes of a character nor elsewhere; the digits of a byte may be small letters."""
    tokenizer = Tokenizer(models.BPE({"<0xC3>": 0, "<0xa9>": 5, "\u2581a": 9}, [], byte_fallback=True))
    tokenizer.decoder = SENTENCEPIECE[False].decoder
    detokenizer = detokenizers(tokenizer)()
    assert [detokenizer.push(token_id) for token_id in (0, 3, 5, 9, 10)] == ["", "", "\u00e9", " a", ""]


def test_each_vocabulary_has_its_kind(default_tokenizer):
    """The fast ways are taken where they are exact, the general one elsewhere."""
    kinds = [type(detokenizers(tokenizer)()) for tokenizer in (default_tokenizer, SENTENCEPIECE[True], wordpiece())]
    assert kinds == [ByteLevelDetokenizer, ByteFallbackDetokenizer, WindowDetokenizer]
