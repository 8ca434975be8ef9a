"""Grammars in llguidance's Lark: their rules, texts, tags, free text up to a tag, and JSON.

Owns how these are written. A tag that is a token of the model is matched as that token; any other tag is matched as
text. Does not know formats.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# White space in JSON: a space, or a line break and some indentation. A small model could write it without end.
_SPACE = r"(\n {0,20}| )?"
SPACE, TEXT, NO_OBJECT, NO_LIST = "SPACE", "TEXT", "NO_OBJECT", "NO_LIST"  # terminals
CODE, QUOTED = "CODE", "QUOTED"
_TERMINALS = {
    SPACE: r"/(\n{1,2}| )?/",  # between tags, and in calls
    TEXT: "/(?s:.*)/",
    NO_OBJECT: r"/(\s*[^\s{](?s:.*))?/",  # any text that does not begin like a JSON object
    NO_LIST: r"/(\s*[^\s\[](?s:.*))?/",
    QUOTED: r"/'([^'\\\x00-\x1f]|\\['\"\\nrt])*'/",  # a string in Python's other quotes
    CODE: r"/\s*[^\s{\[](?s:.*)/ & ~/\s*[\w-]+\.call\((?s:.*)/",  # nor like a list, or like NAME.call(
}


class Lark:
    """One grammar, from its rules to its source.

    Args:
        token_of: the id of a tag that is a token; None for one that is text.
    """

    def __init__(self, token_of: Callable[[str], int | None]) -> None:
        self._token_of = token_of
        self._rules: dict[str, str] = {}

    def rule(self, body: str, options: str = "") -> str:
        """A rule; its name. One that is there already is used again."""
        key = f"{options}: {body}"
        if key not in self._rules:
            self._rules[key] = f"rule_{len(self._rules)}"
        return self._rules[key]

    def is_token(self, word: str) -> bool:
        """Whether a tag is a token of the model."""
        return self._token_of(word) is not None

    def tag(self, word: str) -> str:
        """A tag, or any other text."""
        token = self._token_of(word)
        return literal(word) if token is None else f"<[{token}]>"

    def any_of(self, words: Iterable[str]) -> str:
        """One of these tags."""
        return either(self.tag(word) for word in sorted(words))

    def up_to(self, words: Iterable[str], text: str = TEXT) -> str:
        """Free text up to the first of these tags, and the tag."""
        tags = sorted(words)
        tokens = [word for word in tags if self._token_of(word) is not None]
        texts = [literal(word) for word in tags if word not in tokens]
        ways = [f"{text} {self.any_of(tokens)}"] if tokens else []
        if texts:
            ways.append(self.rule(f"{text} {either(texts)}", "[lazy]"))
        return either(ways)

    def json(self, schema: Mapping[str, Any], *, lenient: bool) -> str:
        """JSON that follows `schema`, as far as that can be had if it is `lenient`."""
        guided = {**schema, "x-guidance": {"whitespace_pattern": _SPACE, "lenient": lenient}}
        return self.rule(f"%json {json.dumps(guided)}")

    def source(self, start: str) -> str:
        """The grammar of outputs that are `start`."""
        terminals = "".join(f"{name}: {body}\n" for name, body in _TERMINALS.items())
        rules = "".join(f"{name}{rule}\n" for rule, name in self._rules.items())
        return f"start: {start}\n{rules}{terminals}"


def literal(text: str) -> str:
    """The text itself."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def either(ways: Iterable[str]) -> str:
    """One of these."""
    found = list(ways)
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"
