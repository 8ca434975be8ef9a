"""A vocabulary that lacks bytes has the same tokens without the step that removes them, where that is left out."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

from rbee.server.text.plain_texts import PlainTexts
from rbee.server.text.tokenizer import TextCodec

LACKING = "Ąñ"  # the bytes 0x04, which is a character, and 0xF1, which begins some
TEXTS = st.text(st.sampled_from("ab \n.1é🐝\x04\U00050000"), max_size=30)


def tokenizer() -> Tokenizer:
    """As one of a GGUF file, with a merge over what may be removed, and a token in front of each text."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(LACKING))
    names = [*alphabet, "ab", "Ġa", "..", "ĊĊ"]
    made = Tokenizer(
        models.BPE({name: n for n, name in enumerate(names)}, [("a", "b"), ("Ġ", "a"), (".", "."), ("Ċ", "Ċ")])
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\s+(?!\S)"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(f"[{LACKING}]"), "removed"),
        ]
    )
    made.add_tokens([AddedToken("b1", special=False)])
    made.add_special_tokens([AddedToken("<s>", special=True)])
    first = made.token_to_id("<s>")
    assert first is not None
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", first)])
    return made


TOKENIZER = tokenizer()
CODEC = TextCodec(TOKENIZER)


@given(TEXTS, st.booleans())
@example(".\x04.", False)
@example("a\U00050000b<s>b1", True)
def test_every_text_has_the_same_tokens(text, add_special_tokens):
    """Added tokens, and what stands around a text, are the same too."""
    ids = TOKENIZER.encode(text, add_special_tokens=add_special_tokens).ids
    assert CODEC.encode(text, add_special_tokens=add_special_tokens) == ids


@pytest.mark.parametrize(("text", "is_plain"), [("ab é🐝", True), ("", True), ("a\x04", False), ("\U00050000", False)])
def test_most_texts_do_without_the_step(text, is_plain):
    """All but those with a byte that the vocabulary lacks."""
    chosen = PlainTexts(TOKENIZER).tokenizer_for(text)
    assert (chosen is not TOKENIZER) == is_plain


def test_a_step_that_removes_nothing_is_kept():
    """As is one that no text can do without."""
    other = tokenizer()
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "removed")])
    assert PlainTexts(other).tokenizer_for("ab") is other
