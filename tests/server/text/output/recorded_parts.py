"""Recorded outputs of models: their tools, their form, and what a parser is expected to say of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from rbee.server.text.output import OutputKind, Tool
from rbee.server.text.output.formats import HARMONY, REASONING_FORMATS, TOOL_FORMATS, ModelFormat
from rbee.server.text.output.harmony import HARMONY_TAGS
from rbee.server.text.output.marks import SIGN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rbee.server.text.output import Span

Said = tuple[str, ...]  # ("text", ...), ("reasoning", ...), ("call", name, arguments)

TOOLS = (
    Tool(
        "get_weather",
        "The weather of a city.",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "integer"},
            },
            "required": ["city"],
        },
    ),
    Tool(
        "search",
        None,
        {
            "type": "object",
            "properties": {
                "query": {"type": "string"},
                "filters": {"type": "object"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "exact": {"type": "boolean"},
                "note": {"type": ["string", "null"]},
            },
        },
    ),
    Tool("ping", None, {"type": "object", "properties": {}}),
)
SPECIAL_TOKENS = ("<|im_end|>", "<|endoftext|>")

# Braces, quotes, escapes, tags and characters beyond ASCII in strings, and nesting.
TRICKY = (
    r'{"query": "a } \" { \\ [x] \u00e9 é 😀 \ud83d\ude00 </tool_call> </function>",'
    r' "filters": {"deep": [{"a": {}}, [], -1.5e3, null]}}'
)
PARIS = '{"city": "Paris"}'
OSLO = '{"city": "Oslo", "days": 3}'


class Recorded(NamedTuple):
    """One output."""

    tool_parser: str
    what: str
    text: str
    said: tuple[Said, ...]
    is_whole: bool = True  # calls are complete and valid, so that a grammar accepts the output
    reasoning_parser: str = "none"
    reasoning_open: bool = False

    @property
    def format(self) -> ModelFormat:
        """The format of a model that writes so."""
        return ModelFormat(self.tool_parser, self.reasoning_parser, SPECIAL_TOKENS)

    @property
    def tags(self) -> frozenset[str]:
        """Of its formats."""
        if HARMONY in (self.tool_parser, self.reasoning_parser):
            return HARMONY_TAGS
        calls = None if self.tool_parser == "none" else TOOL_FORMATS[self.tool_parser].format
        reasoning = None if self.reasoning_parser == "none" else REASONING_FORMATS[self.reasoning_parser].format
        tags = frozenset() if reasoning is None else reasoning.tokens
        return tags if calls is None else tags | calls.openers | calls.tags

    def format_with(self, tokens: Sequence[str]) -> ModelFormat:
        """The same, of a model that has these tags as tokens."""
        names = [*(token for token in tokens if token in self.tags), *SPECIAL_TOKENS]
        return ModelFormat(
            self.tool_parser, self.reasoning_parser, names, {name: names.index(name) for name in names}.get
        )

    def read(self, pieces: Iterable[str], tokens: Sequence[str] = ()) -> tuple[Said, ...]:
        """What a parser makes of it, cut into these pieces."""
        of_model = self.format_with(tokens) if tokens else self.format
        parser = of_model.parser(tools=TOOLS, reasoning_open=self.reasoning_open)
        spans = [span for piece in pieces for span in parser.push(piece)]
        return said(spans + parser.finish())


def signed(text: str, tokens: Sequence[str]) -> str:
    """An output in which all of these, and special tokens, are tokens."""
    names = sorted([*tokens, *SPECIAL_TOKENS], key=len, reverse=True)
    return re.sub("|".join(map(re.escape, names)), lambda found: SIGN + found[0], text)


def said(spans: Iterable[Span]) -> tuple[Said, ...]:
    """Spans of one kind joined, calls with their names."""
    parts: list[list[str]] = []
    calls: list[list[str]] = []
    for kind, text, call in spans:
        assert text
        match kind:
            case OutputKind.TOOL_NAME:
                assert call == len(calls)
                calls.append(["call", text, ""])
                parts.append(calls[-1])
            case OutputKind.TOOL_ARGUMENTS:
                assert call == len(calls) - 1
                assert parts[-1] is calls[-1]
                calls[-1][2] += text
            case _:
                name = kind.name.lower()
                if parts and parts[-1][0] == name:
                    parts[-1][1] += text
                else:
                    parts.append([name, text])
    return tuple(tuple(part) for part in parts)


def text(what: str) -> Said:
    """Text for the user."""
    return ("text", what)


def call(name: str, arguments: str) -> Said:
    """A call."""
    return ("call", name, arguments)


WEATHER, WEATHER_2, SEARCH, PING = (
    call("get_weather", PARIS),
    call("get_weather", OSLO),
    call("search", TRICKY),
    call("ping", "{}"),
)


def json_call(name: str, arguments: str, key: str = "arguments") -> str:
    """A call as most models write it between their tags."""
    return f'{{"name": "{name}", "{key}": {arguments}}}'
