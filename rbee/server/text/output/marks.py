"""Finds strings in a text that is not complete yet, and says up to where it holds none for certain.

Owns how a tag that is a token of the model stands in an output: behind a sign. Its letters alone are text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SIGN = "\udc00"  # no text of a model has it: it is no character


class Marks:
    """A set of strings to find.

    Of two that begin at the same place the longer one counts, however the text is cut into pieces.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = frozenset(words)
        self._lengths = sorted({len(word) for word in self._words}, reverse=True)
        self._beginnings = {word[:length] for word in self._words for length in range(1, len(word))}
        first = "".join(sorted({re.escape(word[0]) for word in self._words}))
        self._first = re.compile(f"[{first}]" if first else "(?!)")

    def __contains__(self, word: str) -> bool:
        return word in self._words

    def find(self, text: str, start: int, *, ended: bool) -> tuple[int, str | None]:
        """Up to where `text` holds no mark, and the mark that stands there; None while none is complete.

        `ended`: nothing follows `text`, so that the beginning of a mark is none.
        """
        first = self._first.search(text, start)
        while first is not None:
            at = first.start()
            if not ended and len(text) - at < self._lengths[0] and text[at:] in self._beginnings:
                return at, None
            for length in self._lengths:
                word = text[at : at + length]
                if word in self._words:
                    return at, word
            first = self._first.search(text, at + 1)
        return len(text), None


class Spelling:
    """How the tags of a model's outputs stand in them; `tokens` are those that are tokens."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._tokens = frozenset(tokens)
        self._marks: dict[frozenset[str], Marks] = {}

    def of(self, tag: str) -> str:
        """A tag, or another text, as it stands there."""
        return SIGN + tag if tag in self._tokens else tag

    def marks(self, tags: frozenset[str]) -> Marks:
        """Finds these tags."""
        found = self._marks.get(tags)
        if found is None:
            found = self._marks[tags] = Marks(map(self.of, tags))
        return found


def plain(text: str) -> str:
    """The text without what stands in front of names of tokens."""
    return text.replace(SIGN, "") if SIGN in text else text
