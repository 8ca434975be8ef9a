"""Where the tokens of an echoed prompt begin in its text."""

from __future__ import annotations

from rbee.server.text.token_text import Echo
from rbee.server.text.tokenizer import TextCodec
from tests.server.text.text_parts import SENTENCEPIECE, id_of


def test_the_space_that_a_vocabulary_puts_first_is_not_in_the_text() -> None:
    """Its decoder may show it, as a completion needs it there; each word then still begins where it does."""
    codec = TextCodec(SENTENCEPIECE[False])
    ids = [id_of(SENTENCEPIECE[False], token) for token in ("▁Hello", "▁wor", "ld")]
    assert Echo.of(ids, "Hello world", codec).offsets == [0, 5, 9]
    assert Echo.of(ids, None, codec).offsets == [0, 6, 10]
