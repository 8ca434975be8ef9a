"""A model's tokens as llguidance takes them, and grammars compiled for them.

Owns which tokens a grammar can name, and what a compilation may cost. Does not know what a grammar is for.

The end of an output is a token of its own, behind those of the model: which of these end an output depends on the
request.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark
from tokenizers import Tokenizer

from rbee.config import SYNTHETIC
from rbee.errors import GrammarError, ModelError
from rbee.grammars import GBNF_LINE, GBNF_NAME
from rbee.grammars.matcher import Matcher, guarded
from rbee.models import synthetic, token_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable

_SPECIAL = b"\xff"  # what llguidance expects in front of a special token's name; no text has this byte
# The work for a mask is bounded by llguidance's defaults: about 15 ms, but for ambiguous grammars. Its messages would
# repeat the whole grammar.
_LIMITS = LLParserLimits(verbose_errors=False)
# The model chooses how it writes a text that is forced; else llguidance would tokenize that.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


class Vocabulary(NamedTuple):
    """A vocabulary that grammars can be compiled for."""

    tokenizer: LLTokenizer
    end: int  # the token that stands for the end; the model's own are below it

    @property
    def num_words(self) -> int:
        """Of 32 bits, in a mask with a bit for each token and for `end`."""
        return self.end // 32 + 1

    def compile(self, source: str) -> Matcher:
        """The matcher of an output that is still empty. Runs without Python's lock, for as long as it takes.

        A deep grammar takes much of the thread's stack. What it takes of time and memory has a bound, which is high.

        Raises:
            GrammarError: the source is no grammar, or one beyond the limits.
        """
        compiled = partial(LLMatcher, self.tokenizer, _as_lark(source) + _OPTIONS, log_level=0, limits=_LIMITS)
        return Matcher(guarded(compiled), self.end)


def _as_lark(source: str) -> str:
    """The source without GBNF."""
    around, is_gbnf, gbnf = f"\n{source}".partition(f"\n{GBNF_LINE}")
    if not is_gbnf:
        return source
    try:
        lark = gbnf_to_lark(gbnf)
    except Exception as error:  # it raises more than its own GbnfToLarkError
        raise GrammarError(f"{error or type(error).__name__}") from error
    return f"{around}\n{GBNF_NAME}: %lark {{\n{lark}\n}}" if around else lark


class _Tokens(TokenizerWrapper):
    """What llguidance asks of a tokenizer that is given by its tokens."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: list[bytes]) -> None:  # that of the base class asks a tokenizer
        self.tokens = tokens
        self.eos_token_id = None  # type: ignore[assignment] # llguidance then adds the one that stands for the end
        self.bos_token_id = None
        self.special_token_ids = ()  # their bytes are marked already

    def __call__(self, text: str) -> list[int]:  # noqa: ARG002 - llguidance's signature
        raise AssertionError("no grammar of ours forces a tokenization")


def load(model: str) -> Vocabulary:
    """The vocabulary of a ready folder, or of "synthetic". Takes 0.3 s for 49,152 tokens.

    A token whose name is in angle brackets counts as special, whatever its tokenizer says: no text has it, and a
    grammar can name it.

    Raises:
        ModelError: the tokenizer cannot be read, or what a token stands for depends on its neighbours.
    """
    try:
        if model == SYNTHETIC:
            tokenizer, known = synthetic.tokenizer(), None
        else:
            content = (Path(model) / "tokenizer.json").read_bytes()
            tokenizer, known = Tokenizer.from_buffer(content), token_pieces.read(Path(model), content)
        pieces = _pieces(tokenizer) if known is None else known
        tokens = [piece if isinstance(piece, bytes) else piece.encode() for some in pieces for piece in some]
        for token_id, token in tokenizer.get_added_tokens_decoder().items():
            if token.special or (token.content.startswith("<") and token.content.endswith(">")):
                tokens[token_id] = _SPECIAL + token.content.encode()
        return Vocabulary(guarded(LLTokenizer, _Tokens(tokens)), end=len(tokens))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for everything
        raise ModelError(f"the tokenizer of {model} cannot be read: {error}") from error


def _pieces(tokenizer: Tokenizer) -> Iterable[list[token_pieces.Piece]]:
    writing = token_pieces.writing_of(tokenizer)
    if writing is None:
        raise ModelError("what a token of this model stands for depends on its neighbours")
    return token_pieces.pieces_of(tokenizer, writing)
