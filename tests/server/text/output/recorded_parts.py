"""Recorded outputs of models: their tools, their form, and what a parser is expected to say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rbee.server.text.output import OutputKind, Tool
from rbee.server.text.output.formats import ModelFormat

if TYPE_CHECKING:
    from collections.abc import Iterable

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

    def read(self, pieces: Iterable[str]) -> tuple[Said, ...]:
        """What a parser makes of it, cut into these pieces."""
        parser = self.format.parser(tools=TOOLS, reasoning_open=self.reasoning_open)
        spans = [span for piece in pieces for span in parser.push(piece)]
        return said(spans + parser.finish())


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
