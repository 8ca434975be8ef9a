"""Marks in what clients write, at which the prompt is cut later, so that no special token is whole there.

Owns how a mark gets into every string of a value, and what the text is cut into. A mark is hexadecimal digits, which
templates leave as they are, also inside of JSON. Does not know templates.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from rbee.server.text.tokenizer import TooManyTokensError

if TYPE_CHECKING:
    from rbee.server.text.special_tokens import SpecialTokens


class Marks:
    """The marks of one prompt, of which there are at most `limit`: each stands inside of a token's spelling."""

    def __init__(self, special_tokens: SpecialTokens, limit: int) -> None:
        self._special_tokens = special_tokens
        self._limit = limit
        self._mark = secrets.token_hex(8)
        self._count = 0

    def put(self, value: Any) -> Any:
        """`value` with a mark in each special token, in strings at every depth, names of members too.

        Raises:
            TooManyTokensError: there are more than `limit` by now.
        """
        if isinstance(value, str):
            return self._in_text(value)
        if isinstance(value, dict):
            return {self.put(name): self.put(member) for name, member in value.items()}
        if isinstance(value, list):
            return [self.put(item) for item in value]
        return value

    def put_in_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """The same for a message, whose own fields are the server's, and its role too."""
        return {name: value if name == "role" else self.put(value) for name, value in message.items()}

    def cut(self, text: str) -> list[str]:
        """A text made of such values, in pieces without marks."""
        return text.split(self._mark) if self._count else [text]

    def _in_text(self, text: str) -> str:
        pieces = self._special_tokens.cut(text, most=self._limit)
        if len(pieces) == 1:
            return text
        self._count += len(pieces) - 1
        if self._count > self._limit:
            raise TooManyTokensError(self._count)
        return self._mark.join(pieces)
