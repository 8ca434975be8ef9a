"""The tokens of a model that no text of an output has: a grammar has to name them.

Owns where the name of one stands in a text. Which tokens these are, `rbee.grammars.is_name` says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class NamedTokens:
    """Those of one model; `ids` are by name."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        longest_first = sorted(ids, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) if ids else "(?!)")

    def split(self, text: str) -> list[str | int]:
        """The text as a model with these tokens writes it: texts without names, and the tokens between them."""
        parts: list[str | int] = []
        start = 0
        for name in self._any.finditer(text):
            parts += [text[start : name.start()], self._ids[name[0]]]
            start = name.end()
        return [part for part in (*parts, text[start:]) if part != ""]

    def end_of(self, text: str, place: int) -> int:
        """The first place of the text, from this one on, that is not within a name."""
        for name in self._any.finditer(text):
            if name.start() < place < name.end():
                return name.end()
        return place
