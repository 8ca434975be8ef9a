"""Output parsers and grammars with a real tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from rbee.server.text.output import ModelFormat
from rbee.server.text.output.marks import plain
from rbee.server.text.token_text import TokenText
from rbee.server.text.tokenizer import TextCodec
from tests.server.text.output.all_recorded_parts import RECORDED, WHOLE
from tests.server.text.output.grammar_parts import TOKENS, Vocabulary, constrained, grammar, is_written_so
from tests.server.text.output.recorded_parts import SPECIAL_TOKENS, TOOLS, said

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
        special = [token for token in codec.special_tokens if token in recorded.tags or token in SPECIAL_TOKENS]
        ids = codec.added_token_ids()
        of_model = ModelFormat(recorded.tool_parser, recorded.reasoning_parser, special, ids.get)
        shown = TokenText(codec.detokenizer(skip_special_tokens=False), token_names=of_model.token_names)
        pieces = [shown.push(token) for token in codec.encode(recorded.text, add_special_tokens=False)]
        pieces.append(shown.flush())
        assert plain("".join(pieces)) == recorded.text
        parser = of_model.parser(tools=TOOLS, reasoning_open=recorded.reasoning_open)
        spans = [span for piece in pieces for span in parser.push(piece)]
        assert said(spans + parser.finish()) == recorded.said, recorded


def test_grammars_accept_what_a_model_writes(vocabulary):
    """Also where a token is the end of one part of the grammar and the beginning of the next."""
    for recorded in WHOLE:
        accepted = vocabulary.accepts(grammar(recorded, vocabulary), constrained(recorded.text))
        assert accepted == is_written_so(recorded, vocabulary), recorded
