r"""Regular expressions as grammars in Lark have them: between slashes, of a text, and of a text behind an expression.

Owns what is escaped there, and that \d is an ASCII digit. Whether an expression is one is found out when it is compiled
(`rbee.server.text.grammars`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LITERAL = str.maketrans(
    {sign: f"\\{sign}" for sign in "\\.+*?()|[]{}^$/"}
    | {control: f"\\x{ord(control):02x}" for control in map(chr, (*range(0x20), 0x7F))}
)


def one_of(texts: Iterable[str]) -> str:
    """One of these texts, as it may stand between slashes."""
    return "|".join(text.translate(_LITERAL) for text in texts)


def in_slashes(regex: str) -> str:
    r"""As it may stand between slashes, with \d for ASCII digits only, as JSON's are."""
    parts: list[str] = []
    for part, in_class in _parts(regex):
        digits = "0-9" if in_class else "[0-9]"
        parts.append({"\\d": digits, "/": "\\/", "\n": "\\n", "\r": "\\r"}.get(part, part))
    return "".join(parts)


def closes_too_much(regex: str) -> bool:
    """Whether it has a closing parenthesis without an opening one, so that it would end what stands around it."""
    depth = 0
    for part, in_class in _parts(regex):
        if not in_class:
            depth += (part == "(") - (part == ")")
        if depth < 0:
            return True
    return False


def _parts(regex: str) -> Iterator[tuple[str, bool]]:
    """Its characters and escapes, and whether each stands in a class or begins one."""
    in_class = False
    position = 0
    while position < len(regex):
        part = regex[position : position + 2] if regex[position] == "\\" else regex[position]
        position += len(part)
        in_class = (in_class or part == "[") and part != "]"
        yield part, in_class
