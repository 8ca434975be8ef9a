"""Python's literals become the JSON of the same values, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.server.text.output import ModelFormat, OutputKind
from tests.server.text.output.recorded_parts import TOOLS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("'\"\\,)]}: \n"), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=10
)


def arguments(pieces: list[str] | str) -> str:
    """Of the call that an output makes."""
    parser = ModelFormat("lfm2", "none").parser(tools=TOOLS, reasoning_open=False)
    spans = [span for piece in pieces for span in parser.push(piece)] + parser.finish()
    return "".join(span.text for span in spans if span.kind is OutputKind.TOOL_ARGUMENTS)


def output(value: str) -> str:
    """A call with this value."""
    return f"<|tool_call_start|>[search(query={value}, note=1)]<|tool_call_end|>"


@settings(max_examples=300)
@given(VALUES, st.data())
def test_what_python_writes(value: Any, data: st.DataObject) -> None:
    """Its own words for a value, and those of JSON, whole, cut anywhere, and character by character."""
    for written in (repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False)):
        text = output(written)
        at = data.draw(st.integers(0, len(text)))
        for pieces in ([text], [text[:at], text[at:]], text):
            assert json.loads(arguments(pieces)) == {"query": value, "note": 1}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("(1, 'a')", [1, "a"]),
        ("(1,)", [1]),
        ("()", []),
        ("[1, 2, ]", [1, 2]),
        ("{1: 2, None: 3, 'a': 4,}", {"1": 2, "null": 3, "a": 4}),
        ("0x1F", 31),
        ("1_000", 1000),
        ("+5", 5),
        (".5", 0.5),
        ("1.", 1.0),
        ("name", "name"),
        ("a.b-c", "a.b-c"),
        (r"'\x41\u00e9\U0001f600\'\"\/\a\q\12'", "Aé\U0001f600'\"/\a\\q\\12"),
        (r"'\ud83d\ude00'", "\U0001f600"),
        (r"'\U00110000\U0000d800'", "��"),
        (r"'\x4'", "\\x4"),
        (r"'\u12'", "\\u12"),
        ("'a\\\nb'", "ab"),
        ("'a\nb'", "a\nb"),
        ("''", ""),
        ("''''''", ""),
        ("'''a'b''c'''", "a'b''c"),
        ('"""a\\"""b"""', 'a"""b'),
        ('"" "', '" '),
        ("'a' 'b'", "a' 'b"),
    ],
)
def test_what_else_models_write(written: str, value: Any) -> None:
    """Other literals, escapes, and what is no literal."""
    for pieces in ([output(written)], output(written)):
        assert json.loads(arguments(pieces)) == {"query": value, "note": 1}


@pytest.mark.parametrize("broken", ["", "*", "[1 2", "{'a' 1}", "'a", '"""a', "[}", "1 + 2"])
def test_what_breaks_off(broken: str) -> None:
    """A call with what came of it; deep nesting is no recursion."""
    for pieces in ([output(broken)], output(broken)):
        assert arguments(pieces).startswith('{"query": ')


def test_deep_values() -> None:
    """Are no recursion."""
    deep = "[" * 20_000
    assert arguments([output(deep)]).startswith(f'{{"query": {deep}')
