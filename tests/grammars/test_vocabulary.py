"""Vocabularies of all kinds, as grammars see them: which tokens an output may have, and where it may end."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from rbee.errors import GrammarError, ModelError
from rbee.grammars import library, vocabulary
from rbee.models import token_pieces
from rbee.process_memory import private_memory
from tests.server.text.text_parts import SENTENCEPIECE, SYNTHETIC, wordpiece

if TYPE_CHECKING:
    from pathlib import Path

    from rbee.grammars.matcher import Matcher
    from rbee.grammars.vocabulary import Vocabulary


def load(folder: Path, tokenizer: Tokenizer, *, keep_pieces: bool = False) -> Vocabulary:
    """Of a model folder with this tokenizer; perhaps with the file of its pieces."""
    content = tokenizer.to_str().encode()
    (folder / "tokenizer.json").write_bytes(content)
    if keep_pieces and (pieces := token_pieces.encode(tokenizer, content)):
        (folder / token_pieces.FILE_NAME).write_bytes(pieces)
    return vocabulary.load(str(folder))


def allowed(known: Vocabulary, matcher: Matcher) -> tuple[set[int], bool]:
    """The tokens that may come next, and whether the output may end."""
    mask = np.zeros(known.num_words, np.uint32)
    may_end = matcher.fill(mask)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()), may_end


@pytest.mark.parametrize("keep_pieces", [False, True])
@pytest.mark.parametrize("tokenizer", [SYNTHETIC, *SENTENCEPIECE.values()])
def test_tokens_are_the_bytes_of_their_text(tokenizer, keep_pieces, tmp_path):
    """Whatever may come spells the text, byte by byte, and the text can be spelled to its end."""
    known = load(tmp_path, tokenizer, keep_pieces=keep_pieces)
    writing = token_pieces.writing_of(tokenizer)
    assert writing is not None
    pieces = [piece for some in token_pieces.pieces_of(tokenizer, writing) for piece in some]
    contents = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    text = "a é".encode()
    matcher = known.compile('start: "a é"')
    complete = False
    while text:
        tokens, may_end = allowed(known, matcher)
        assert tokens == {number for number, content in enumerate(contents) if content and text.startswith(content)}
        assert not may_end
        token = max(tokens)
        text = text[len(contents[token]) :]
        complete = matcher.accept(token)
    assert complete


@pytest.mark.parametrize("keep_pieces", [False, True])
def test_special_tokens_are_no_text(keep_pieces, tmp_path):
    """A grammar can name them; no text has one, also if its tokenizer calls a name in brackets ordinary."""
    tokenizer = Tokenizer.from_str(SYNTHETIC.to_str())
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("hello", special=False)])
    known = load(tmp_path, tokenizer, keep_pieces=keep_pieces)
    assert known.end == 259
    end, think, hello = 256, 257, 258
    assert allowed(known, known.compile("start: /(?s:.)*/"))[0] & {end, think, hello} == {hello}
    assert allowed(known, known.compile("start: <think> /a+/ <|end|>")) == ({think}, False)
    tokens, _ = allowed(known, known.compile('start: "<think>" | "hello"'))
    assert tokens == {ord("<"), ord("h"), hello}


def test_an_end_is_no_token_of_the_model(tmp_path):
    """It may come after each `a`, and its bit is none of the mask's."""
    known = load(tmp_path, SYNTHETIC)
    matcher = known.compile("start: /a+/")
    assert allowed(known, matcher) == ({ord("a")}, False)
    assert matcher.accept(ord("a")) is False
    assert allowed(known, matcher) == ({ord("a")}, True)
    other = matcher.copy()
    with pytest.raises(GrammarError):
        other.accept(ord("b"))
    assert allowed(known, matcher) == ({ord("a")}, True)


def test_a_complete_output_is_over(tmp_path):
    """Nothing may come behind it, nor behind an error."""
    matcher = load(tmp_path, SYNTHETIC).compile('start: "ab"')
    assert [matcher.accept(ord("a")), matcher.accept(ord("b"))] == [False, True]
    for _ in range(2):
        with pytest.raises(GrammarError):
            matcher.accept(ord("b"))


def test_a_source_is_text(tmp_path):
    """What C could not take, or would cut, is named."""
    known = load(tmp_path, SYNTHETIC)
    with pytest.raises(GrammarError, match=r"it has U\+0000$"):
        known.compile('start: "a\0b"')
    with pytest.raises(GrammarError, match=r"it has U\+D800, which is half a character$"):
        known.compile('start: "\ud800"')


def test_a_panic_of_llguidance_is_an_error_of_the_source(tmp_path):
    """Version 1.9.1 has one for the name of a token where there are no special ones."""
    known = load(tmp_path, SYNTHETIC)
    with pytest.raises(GrammarError):
        known.compile("start: <|end|>")


def test_a_mask_of_another_size_is_not_taken_for_filled(tmp_path):
    """Nothing is written behind it."""
    known = load(tmp_path, SYNTHETIC)
    matcher = known.compile("start: /a+/")
    for words in (known.num_words - 1, known.num_words + 1):
        mask = np.zeros(known.num_words + 1, np.uint32)
        with pytest.raises(AssertionError):
            matcher.fill(mask[:words])
        assert not mask.any()
    assert allowed(known, matcher)[0] == {ord("a")}


@pytest.mark.parametrize("fails", ["library", "tokens"])
def test_a_tokenizer_that_cannot_be_made_is_an_error(fails, monkeypatch):
    """And nothing else: there is nothing to free."""

    def fail() -> None:
        raise OSError("no library")

    if fails == "library":
        monkeypatch.setattr(library, "load", fail)
    with pytest.raises(OSError if fails == "library" else GrammarError):
        library.Tokenizer([b"a" * 2**17] * 3)


def test_matchers_are_freed(tmp_path):
    """Each has the whole grammar's state."""
    known = load(tmp_path, SYNTHETIC)
    mask = np.zeros(known.num_words, np.uint32)

    def use(times: int) -> int:
        for _ in range(times):
            known.compile('start: %json {"type": "object"}').copy().fill(mask)
        return private_memory()

    before = use(20)
    assert use(200) < before + 8e6  # one has 0.2 MB


def test_copies_share_nothing(tmp_path):
    """The engine takes a token of one while a thread fills a mask of another: a state of both would be locked."""
    load(tmp_path, SYNTHETIC, keep_pieces=True)
    # In a process of its own, which has no memory left over from what was freed.
    script = f"""
import numpy as np
from rbee.grammars import vocabulary
from tests.grammars.test_vocabulary import private_memory
known = vocabulary.load({str(tmp_path)!r})
matcher = known.compile("start: " + " | ".join(f'"value {{number}}"' for number in range(2000)))
matcher.fill(np.zeros(known.num_words, np.uint32))
before = private_memory()
copies = [matcher.copy() for _ in range(64)]
print((private_memory() - before) // len(copies))
"""
    size = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert int(size) > 100e3, "the states of the lexer are copied"


def test_loading_imports_as_little_as_possible(tmp_path):
    """Llguidance's Python package takes a tenth of a second, and so long other threads get to run only now and then."""
    load(tmp_path, SYNTHETIC, keep_pieces=True)
    script = f"""
import sys
from rbee.grammars import vocabulary
vocabulary.load({str(tmp_path)!r}).compile('start: "a"')
print(*sys.modules)
"""
    modules = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert not {"llguidance", "tokenizers"} & {*modules.split()}


def test_calls_give_up_the_lock_of_python():
    """Ctypes has another class for libraries whose calls keep it."""
    assert not isinstance(library.load(), ctypes.PyDLL)


def test_vocabularies_without_bytes_have_no_grammars(tmp_path):
    """What WordPiece writes for a token depends on the one before."""
    with pytest.raises(ModelError, match="depends on its neighbours"):
        load(tmp_path, wordpiece())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        vocabulary.load(str(tmp_path))


def test_gbnf(tmp_path):
    """What is wrong with it has a place, too."""
    known = load(tmp_path, SYNTHETIC)
    matcher = known.compile('%gbnf\nroot ::= "x" [a-c]{2} | "y"\n')
    assert allowed(known, matcher) == ({ord("x"), ord("y")}, False)
    with pytest.raises(GrammarError, match="line 2"):
        known.compile('%gbnf\nroot ::= "x"\n  | )')
