"""A vocabulary's own words for its tokens."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from rbee.server.text.tokenizer import TextCodec
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, wordpiece


@pytest.mark.parametrize("tokenizer", [SYNTHETIC, SENTENCEPIECE[False], wordpiece()], ids=["bytes", "pieces", "words"])
def test_tokens_have_the_names_that_transformers_gives_them(tokenizer):
    """All of them, special and added ones too."""
    ids = list(range(tokenizer.get_vocab_size(with_added_tokens=True)))
    names = PreTrainedTokenizerFast(tokenizer_object=tokenizer).convert_ids_to_tokens(ids)
    assert TextCodec(tokenizer).token_names(ids) == names
    assert len(set(names)) == len(ids)


def test_special_tokens_come_back_by_their_names():
    """As a prompt has them, so that what is encoded again is the same."""
    codec = TextCodec(SENTENCEPIECE[False])
    [start] = codec.encode("<s>", add_special_tokens=False)
    token_ids = [start, *codec.encode("bee", add_special_tokens=False)]
    assert codec.decode(token_ids).startswith("<s>")
    assert codec.encode(codec.decode(token_ids), add_special_tokens=False) == token_ids
