"""Output parsers and grammars with a real tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from rbee.server.text.tokenizer import TextCodec
from tests.server.text.output.all_recorded_parts import RECORDED, WHOLE
from tests.server.text.output.grammar_parts import TOKENS, Vocabulary, constrained, grammar, is_written_so

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["tokens", "text"])
def vocabulary(request: pytest.FixtureRequest, default_model) -> Vocabulary:
    """The default model's, with tags as tokens of their own and as text."""
    tokenizer = Tokenizer.from_file(str(default_model.path / "tokenizer.json"))
    return Vocabulary(tokenizer, TOKENS if request.param == "tokens" else ())


def test_cut_at_every_token(vocabulary):
    """An output says what it says token by token, as the detokenizer gives them."""
    codec = TextCodec(vocabulary.tokenizer)
    for recorded in RECORDED:
        detokenizer = codec.detokenizer(skip_special_tokens=False)
        pieces = [detokenizer.push(token) for token in codec.encode(recorded.text, add_special_tokens=False)]
        assert "".join(pieces) == recorded.text
        assert recorded.read([*pieces, detokenizer.flush()]) == recorded.said, recorded


def test_grammars_accept_what_a_model_writes(vocabulary):
    """Also where a token is the end of one part of the grammar and the beginning of the next."""
    for recorded in WHOLE:
        accepted = vocabulary.accepts(grammar(recorded, vocabulary), constrained(recorded.text))
        assert accepted == is_written_so(recorded, vocabulary), recorded
