"""What a grammar in llguidance's Lark says beside which texts there are.

Owns the attributes of rules and the options that llguidance takes in silence and that would change nothing here. What
else is wrong with a grammar llguidance says (`rbee.server.text.grammars`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.server.errors import invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_CAPTURES = "answers have no captures; leave it out"
_ATTRIBUTES = {  # of rules: what to do instead
    "capture": _NO_CAPTURES,
    "stop_capture": _NO_CAPTURES,
    "stop": "what a model has written is not taken back; write suffix, or lazy",
    "temperature": "the output has one temperature; leave it out, and set that of the request",
}
_OPTIONS = {  # of %llguidance
    "allow_initial_skip": "leave it out, and begin the rule start with what may be skipped",
    "allow_invalid_utf8": "leave it out: outputs are texts",
}
_FOLLOWED = {"no_forcing": True}

_PIECE = re.compile(
    r"""
    (?P<skipped>[ \t\r]+|(?:\#|//)[^\n]*)
    | (?P<line>\n)
    | (?P<text>"(?:\\.|[^"\\\n])*"?|/(?:\\.|[^/\\])+/?)  # llguidance refuses one without an end
    | (?P<json>%(?:json|regex|llguidance)\b)
    | (?P<nested>%lark\s*\{)
    | (?P<name>[!?_]*[A-Za-z][\w-]*)
    | (?P<sign>::|[!?_]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"\s*")
_decode = json.JSONDecoder().raw_decode


class _Said(NamedTuple):
    """An attribute of a rule, or an option."""

    name: str
    instead: str | None  # what to do; None: it is followed, or llguidance refuses it


def check_lark(source: str, param: str) -> None:
    """Raise Refusal for what would be ignored; `param` is the field that has the grammar."""
    for name, instead in _said(source):
        if instead is not None:
            message = f"{param} has {name[:64]!r}, which is not supported: {instead}."
            raise invalid(param, message, code="invalid_grammar")


def _said(source: str) -> Iterator[_Said]:
    """All that stands in the heads of rules and in %llguidance; up to where JSON is broken."""
    position, begins, in_head, wants_name = 0, True, False, False
    while match := _PIECE.match(source, position):
        position = match.end()
        kind, piece = match.lastgroup, match[0]
        if kind == "skipped":
            continue
        if kind == "json":
            try:
                value, position = _decode(source, _SPACE.match(source, position).end())  # type: ignore[union-attr]
            except (ValueError, RecursionError):
                return
            if piece == "%llguidance" and isinstance(value, dict):
                yield from _options(value)
        elif kind == "name":
            if in_head and wants_name:
                yield _Said(piece, _ATTRIBUTES.get(piece))
                wants_name = False
            in_head = in_head or (begins and piece.lstrip("!?_")[0].islower())
        elif piece in ("[", ","):
            wants_name = True
        elif piece in (":", "]"):
            in_head, wants_name = in_head and piece == "]", False
        begins = kind in ("line", "nested")
        in_head = in_head and not begins


def _options(given: dict[str, Any]) -> Iterator[_Said]:
    for name, value in given.items():
        if value is not _FOLLOWED.get(name):
            yield _Said(f"%llguidance {name}", _OPTIONS.get(name, "leave it out"))
