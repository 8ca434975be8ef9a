"""Finds a model's special tokens in what people write, so that there they are only text.

Owns how they are found, and where such a text is cut so that a tokenizer takes no part of it for one of them. Does not
know templates or tokenizers. A prompt's own special tokens come from its chat template; who writes one into a message
must not end a turn with it, or begin one.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

from rbee.server.text.tokenizer import TooManyTokensError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PIECE = 16 * 1024  # characters that are searched at a stretch: a search keeps Python's lock, for less than 1 ms


class SpecialTokens:
    """The special tokens of one model. One of a single character cannot be cut, and is not looked for."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        found = sorted(token for token in tokens if len(token) > 1)
        # A text without these holds no token. To look for a single character takes hardly any time.
        self._first = {token[0] for token in found}
        self._beginnings = {token[:2] for token in found}
        self._longest = max(map(len, found), default=0)
        self._any = re.compile(f"(?={any_of(found)})")

    def cut(self, text: str, *, most: int) -> list[str]:
        """`text`, cut behind the first character of each special token, however they overlap.

        Raises:
            TooManyTokensError: it would be cut more than `most` times.
        """
        if not any(first in text for first in self._first) or not any(pair in text for pair in self._beginnings):
            return [text]
        pieces, start = [], 0
        for token in self._begins(text):
            pieces.append(text[start : token + 1])
            start = token + 1
            if len(pieces) > most:
                raise TooManyTokensError(len(pieces))
        return [*pieces, text[start:]]

    def _begins(self, text: str) -> Iterator[int]:
        for start in range(0, len(text), _PIECE):
            end = start + _PIECE
            for match in self._any.finditer(text, start, end + self._longest):
                if match.start() >= end:
                    break
                yield match.start()


def any_of(tokens: list[str]) -> str:
    """A regular expression for the beginning of a text with one of these sorted tokens, the shortest.

    It looks at each character once, not once for each token: models have hundreds that begin alike.
    """
    if "" in tokens:
        return ""
    if len(tokens) == 1:
        return re.escape(tokens[0])
    groups = itertools.groupby(tokens, key=lambda token: token[0])
    ways = [re.escape(first) + any_of([token[1:] for token in group]) for first, group in groups]
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"
