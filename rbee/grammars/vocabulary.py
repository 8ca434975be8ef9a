"""A model's tokens as llguidance takes them, and grammars compiled for them.

Owns which tokens a grammar can name, and what a compilation may cost. Does not know what a grammar is for.

The end of an output is a token of its own, behind those of the model: which of these end an output depends on the
request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from rbee.config import SYNTHETIC
from rbee.errors import GrammarError, ModelError
from rbee.grammars import GBNF_LINE, GBNF_NAME, is_name
from rbee.grammars.library import SPECIAL, Tokenizer
from rbee.grammars.matcher import Matcher
from rbee.models import token_pieces

if TYPE_CHECKING:
    from collections.abc import Iterable

    import tokenizers

# The model chooses how it writes a text that is forced; else llguidance would tokenize that.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


class Vocabulary(NamedTuple):
    """A vocabulary that grammars can be compiled for."""

    tokenizer: Tokenizer

    @property
    def end(self) -> int:
        """The token that stands for the end; the model's own are below it."""
        return self.tokenizer.end

    @property
    def num_words(self) -> int:
        """Of 32 bits, in a mask with a bit for each token and for `end`."""
        return self.end // 32 + 1

    def compile(self, source: str) -> Matcher:
        """The matcher of an output that is still empty. Runs without Python's lock, for as long as it takes.

        The work for a mask is bounded by llguidance's defaults: about 15 ms, but for ambiguous grammars. A deep grammar
        takes much of the thread's stack. What it takes of time and memory has a bound, which is high.

        Raises:
            GrammarError: the source is no grammar, or one beyond the limits.
        """
        return Matcher.compile(_as_lark(source) + _OPTIONS, self.tokenizer)


def _as_lark(source: str) -> str:
    """The source without GBNF."""
    around, is_gbnf, gbnf = f"\n{source}".partition(f"\n{GBNF_LINE}")
    if not is_gbnf:
        return source
    from llguidance.gbnf_to_lark import gbnf_to_lark  # noqa: PLC0415 - imports for a tenth of a second

    try:
        lark = gbnf_to_lark(gbnf)
    except Exception as error:  # it raises more than its own GbnfToLarkError
        raise GrammarError(f"{error or type(error).__name__}") from error
    return f"{around}\n{GBNF_NAME}: %lark {{\n{lark}\n}}" if around else lark


class _Added(msgspec.Struct):
    """A token that is not of the vocabulary proper."""

    id: int
    content: str
    special: bool


class _TokenizerFile(msgspec.Struct):
    """What is wanted of a tokenizer.json beside its tokens' pieces."""

    added_tokens: list[_Added] = []


def load(model: str) -> Vocabulary:
    """The vocabulary of a ready folder, or of "synthetic".

    Takes 0.13 s for 49,152 tokens, nearly all of it without Python's lock. In a folder without the file of its pieces,
    the tokenizers library reads tokenizer.json too.

    A token whose name is in angle brackets counts as special, whatever its tokenizer says: no text has it, and a
    grammar can name it.

    Raises:
        ModelError: the tokenizer cannot be read, or what a token stands for depends on its neighbours.
    """
    try:
        return Vocabulary(Tokenizer(_tokens(model)))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for everything
        raise ModelError(f"the tokenizer of {model} cannot be read: {error}") from error


def _tokens(model: str) -> list[bytes]:
    added: Iterable[tuple[int, str, bool]]
    if model == SYNTHETIC:
        from rbee.models import synthetic  # noqa: PLC0415 - so does the tokenizers library

        pieces, added = _read(synthetic.tokenizer())
    else:
        content = (Path(model) / "tokenizer.json").read_bytes()
        known = token_pieces.read(Path(model), content)
        if known is None:
            from tokenizers import Tokenizer as AnyTokenizer  # noqa: PLC0415 - the same

            pieces, added = _read(AnyTokenizer.from_buffer(content))
        else:
            pieces = known
            file = msgspec.json.decode(content, type=_TokenizerFile)
            added = [(token.id, token.content, token.special) for token in file.added_tokens]
    tokens = [piece if isinstance(piece, bytes) else piece.encode() for some in pieces for piece in some]
    for token_id, name, special in added:
        if is_name(name, special=special):
            tokens[token_id] = SPECIAL + name.encode()
    return tokens


def _read(tokenizer: tokenizers.Tokenizer) -> tuple[Iterable[list[token_pieces.Piece]], list[tuple[int, str, bool]]]:
    writing = token_pieces.writing_of(tokenizer)
    if writing is None:
        raise ModelError("what a token of this model stands for depends on its neighbours")
    added = tokenizer.get_added_tokens_decoder()
    return token_pieces.pieces_of(tokenizer, writing), [
        (token_id, token.content, token.special) for token_id, token in added.items()
    ]
