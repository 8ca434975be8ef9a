"""Properties of output parsers: cuts do not matter, nothing is lost, no tag is shown, nothing certain is withheld."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rbee.server.text.output import ModelFormat, OutputKind, Span
from rbee.server.text.output.formats import HARMONY, REASONING_FORMATS, TOOL_FORMATS
from tests.server.text.output.all_recorded_parts import RECORDED
from tests.server.text.output.recorded_parts import OSLO, PARIS, SPECIAL_TOKENS, TOOLS, TRICKY, json_call, said

TAGGED = [name for name in TOOL_FORMATS if name != HARMONY]
PAIRS = [*((name, "qwen3") for name in TAGGED), ("mistral", "mistral"), ("granite", "granite"), (HARMONY, HARMONY)]
HAVE_BARE_CALLS = {"llama3_json", "pythonic", "functionary_v3_2", HARMONY}  # what an answer begins with may be a call
HAVE_VALUES = {"qwen3_coder", "deepseek_v32", "pythonic", "lfm2"}  # of which the parser makes JSON
HARMONY_TAGS = ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]
JSON = ['{"name": "ping", ', '"arguments": ', '"parameters": ', "{", "}", "[", "]", '"', "\\", ", ", ";", "null", "-1"]
WORDS = [
    " ",
    "\n",
    "a",
    "Bee",
    "5 < 6",
    "é",
    "😀",
    "all\n",
    "ping\n",
    "ping",
    "function",
    "```json\n",
    "\n```",
    "</",
    ">",
    "[ping(",
    "query=",
    "'",
    '"""',
    ")",
    "\\x4",
]
WHOLE = [json_call("get_weather", PARIS), json_call("ping", "{}", "parameters"), PARIS, OSLO, TRICKY]


def tags_of(tool_parser, reasoning_parser):
    """All tags of two formats that no text shows, and special tokens."""
    calls, reasoning = TOOL_FORMATS[tool_parser].format, REASONING_FORMATS[reasoning_parser].format
    if calls is None or reasoning is None:
        return [*HARMONY_TAGS, *SPECIAL_TOKENS]
    tags = (calls.openers | calls.tags | reasoning.openers | reasoning.closers | reasoning.tags) - {">>>"}
    return [*sorted(tags), *SPECIAL_TOKENS]


def phrases_of(reasoning_parser, *, reasoning_open):
    """Tags that are plain words, where they count."""
    reasoning = REASONING_FORMATS[reasoning_parser].format
    return [] if reasoning is None else reasoning.closing_phrases if reasoning_open else reasoning.opening_phrases


@st.composite
def outputs(draw, pair):
    """Pieces of an output: tags and their beginnings, JSON and its parts, words."""
    tags = tags_of(*pair)
    beginnings = st.sampled_from(tags).flatmap(lambda tag: st.integers(1, len(tag) - 1).map(lambda end: tag[:end]))
    others = st.sampled_from([*WORDS, *JSON, *WHOLE, ">>>", "to=functions.ping", " to=ping ", "final", "analysis"])
    return draw(st.lists(st.one_of(st.sampled_from(tags), beginnings, others), max_size=16))


def read(pair, pieces, *, reasoning_open=False):
    """The spans of an output of these pieces."""
    parser = ModelFormat(pair[0], pair[1], SPECIAL_TOKENS).parser(tools=TOOLS, reasoning_open=reasoning_open)
    spans = [span for piece in pieces for span in parser.push(piece)]
    return spans + parser.finish()


@settings(max_examples=150)
@given(st.data(), st.sampled_from(PAIRS), st.booleans())
def test_cuts_do_not_matter(data, pair, reasoning_open):
    """An output says the same in its pieces, character by character, and whole, empty pieces among them."""
    pieces = data.draw(outputs(pair))
    text = "".join(pieces)
    whole = said(read(pair, [text], reasoning_open=reasoning_open))
    assert said(read(pair, text, reasoning_open=reasoning_open)) == whole
    assert said(read(pair, ["", *pieces, ""], reasoning_open=reasoning_open)) == whole


@settings(max_examples=150)
@given(st.data(), st.sampled_from(PAIRS), st.booleans())
def test_no_tag_is_shown(data, pair, reasoning_open):
    """Not in text, and not in reasoning; what is left of a text without its tags may spell another one."""
    text = rest = "".join(data.draw(outputs(pair)))
    for tag in tags_of(*pair):
        rest = rest.replace(tag, "")
    assume(not any(tag in rest for tag in tags_of(*pair)))
    for kind, shown, *_ in said(read(pair, text, reasoning_open=reasoning_open)):
        if kind in ("text", "reasoning"):
            assert not [tag for tag in tags_of(*pair) if tag in shown]


@settings(max_examples=150)
@given(st.data(), st.sampled_from([pair for pair in PAIRS if pair[0] != HARMONY]), st.booleans())
def test_nothing_is_lost(data, pair, reasoning_open):
    """All words are in the spans, in their order, whatever is broken around them."""
    pieces = []
    for number, piece in enumerate(data.draw(outputs(pair))):
        pieces += [piece, f"word{number}."] if data.draw(st.booleans()) else [piece]
    shown = "".join(part for parts in said(read(pair, pieces, reasoning_open=reasoning_open)) for part in parts[1:])
    assert re.findall(r"word\d+\.", shown) == [piece for piece in pieces if piece.startswith("word")]


@settings(max_examples=150)
@given(st.data(), st.sampled_from([pair for pair in PAIRS if pair[0] not in HAVE_BARE_CALLS]), st.booleans())
def test_text_waits_only_for_a_tag_that_it_may_become(data, pair, reasoning_open):
    """After each character all is shown but an end that begins a tag, and white space with nothing else."""
    tags = [*tags_of(*pair), *phrases_of(pair[1], reasoning_open=reasoning_open)]
    text = "".join(data.draw(outputs(pair)))
    for tag in tags:
        text = text.replace(tag, "")
    assume(not any(tag in text for tag in tags) and ">>>" not in text)
    parser = ModelFormat(pair[0], pair[1], SPECIAL_TOKENS).parser(tools=TOOLS, reasoning_open=reasoning_open)
    shown = ""
    for end, character in enumerate(text, start=1):
        shown += "".join(span.text for span in parser.push(character))
        withheld = max(length for tag in tags for length in range(len(tag)) if text[:end].endswith(tag[:length]))
        if text[:end].isspace():
            withheld = end
        if withheld < end or shown:
            assert shown == text[: end - withheld] or text[: end - withheld].isspace()
    shown += "".join(span.text for span in parser.finish())
    assert shown == text or text.isspace()


@pytest.mark.parametrize(
    "recorded",
    [output for output in RECORDED if output.is_whole and output.tool_parser not in HAVE_VALUES | {HARMONY}],
    ids=lambda output: f"{output.tool_parser}-{output.what}",
)
def test_arguments_are_shown_with_their_last_character(recorded):
    """Each character of the arguments is shown when it comes, and the name before the first.

    In harmony it may be the beginning of a tag, also inside of a string.
    """
    parser = recorded.format.parser(tools=TOOLS, reasoning_open=recorded.reasoning_open)
    place = 0
    for name, arguments in [part[1:] for part in recorded.said if part[0] == "call"]:
        begin = recorded.text.index(arguments, recorded.text.index(name, place))
        before = parser.push(recorded.text[place:begin])
        place = begin + len(arguments)
        shown = [span for character in arguments for span in parser.push(character)]
        names = [span.text for span in (*before, shown[0]) if span.kind is OutputKind.TOOL_NAME]
        assert names == [name]
        pieces = [span.text for span in shown if span.kind is OutputKind.TOOL_ARGUMENTS]
        assert pieces == list(arguments)


def test_values_of_strings_are_shown_as_they_come():
    """In Qwen3-Coder's format, but for a line break and the beginning of a tag."""
    parser = ModelFormat("qwen3_coder", "none").parser(tools=TOOLS, reasoning_open=False)
    parser.push("<tool_call>\n<function=search>\n<parameter=query>\n")
    for text, shown in (("a", '"a'), ("b\n", "b"), ("c<", "\\nc"), ('/p"', '</p\\"'), ("\n\n", "\\n")):
        assert "".join(span.text for span in parser.push(text)) == shown


def test_values_of_deepseeks_strings_are_shown_as_they_come():
    """But for the beginning of a tag; a line break is a part of them."""
    parser = ModelFormat("deepseek_v32", "none").parser(tools=TOOLS, reasoning_open=False)
    parser.push('<｜DSML｜function_calls>\n<｜DSML｜invoke name="search">\n')
    head = '<｜DSML｜parameter name="query" string="true">'
    for text, shown in (
        (head, '{"query": "'),
        ("a\n", "a\\n"),
        ("<", ""),
        ('/p"', '</p\\"'),
        ("</｜DSML｜parameter>", '"'),
    ):
        assert "".join(span.text for span in parser.push(text)) == shown


@pytest.mark.parametrize("quote", ["'", '"', '"""'])
def test_values_of_python_s_strings_are_shown_as_they_come(quote):
    """But for an escape, and for white space behind a quote."""
    parser = ModelFormat("pythonic", "none").parser(tools=TOOLS, reasoning_open=False)
    parser.push(f"[search(query={quote}")
    for text, shown in (("a", "a"), ("b\\", "b"), ("n", "\\n"), ("\\x4", ""), ("1c", "Ac")):
        assert "".join(span.text for span in parser.push(text)) == shown


def test_names_are_shown_with_their_quote():
    """Also where no arguments have come."""
    parser = ModelFormat("hermes", "none").parser(tools=TOOLS, reasoning_open=False)
    assert parser.push('<tool_call>{"name": "ping') == []
    assert parser.push('"') == [Span(OutputKind.TOOL_NAME, "ping", 0)]


def test_without_tools_there_are_no_calls():
    """Their tags are text like any other; special tokens are not."""
    parser = ModelFormat("hermes", "none", ["<|im_end|>"]).parser(tools=(), reasoning_open=False)
    text = f"<tool_call>{json_call('ping', '{}')}</tool_call>"
    assert parser.push(f"{text}<|im_end|>") == [Span(OutputKind.TEXT, text)]


def test_white_space_alone_is_an_answer():
    """Where it is all that there is."""
    parser = ModelFormat("hermes", "qwen3").parser(tools=TOOLS, reasoning_open=False)
    assert parser.push("\n\n") == []
    assert parser.finish() == [Span(OutputKind.TEXT, "\n\n")]


HOSTILE = [
    ("mistral", '{"arguments": {"a": "[TOOL_CALLS]'),
    ("mistral", "[TOOL_CALLS]"),
    ("hermes", '<tool_call>{"arguments": '),
    ("hermes", '<tool_call>{"name'),
    ("hermes", "<tool_"),
    ("llama3_json", '{"parameters": '),
    ("qwen3_coder", "<tool_call><function=f>"),
    ("qwen3_coder", "<function=f><parameter=a>\n"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n"),
    ("functionary_v3_2", ">>>ping\n"),
    ("deepseek_v32", '<｜DSML｜function_calls>\n<｜DSML｜invoke name="f'),
    ("deepseek_v32", "<｜DSML｜function_calls>\n"),
    ("llama3_json", "<|python_tag|>ping.call"),
    ("llama3_json", '<|python_tag|>ping.call(a="'),
    ("openai", "<|channel|>"),
    ("pythonic", "[ping("),
    ("pythonic", "[ping(a="),
    ("pythonic", "[ping(a='"),
    ("pythonic", '[ping(a="""'),
    ("lfm2", "<|tool_call_start|>"),
    ("lfm2", "<|tool_call_start|>["),
    ("lfm2", "<|tool_call_start|>[f(a={"),
]


@pytest.mark.parametrize(("tool_parser", "piece"), HOSTILE)
def test_time_is_linear(tool_parser, piece):
    """Twice as long an output takes twice as many steps, also where all that it has is begun and never ended."""

    def steps(number):
        """The calls of Python functions that an output of so many pieces takes."""
        parser = ModelFormat(tool_parser, "none").parser(tools=TOOLS, reasoning_open=False)
        count = 0

        def note(_frame, event, _argument):
            nonlocal count
            count += event == "call"

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            for character in piece * number:
                parser.push(character)
            parser.finish()
        finally:
            sys.setprofile(before)
        return count

    assert steps(200) < 2.3 * steps(100)
