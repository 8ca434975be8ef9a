"""Grammars of outputs accept what a parser reads as calls of the tools, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from rbee.models import synthetic
from rbee.server.text.output import ModelFormat, Tool, ToolChoice
from tests.server.text.output.all_recorded_parts import WHOLE
from tests.server.text.output.grammar_parts import STRICT, TOKENS, Vocabulary, constrained, grammar, is_written_so
from tests.server.text.output.recorded_parts import OSLO, PARIS, TOOLS, Recorded, json_call

VOCABULARIES = {"tokens": TOKENS, "text": ()}


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    """Each byte is a token; tags are tokens of their own, or text."""
    return Vocabulary(synthetic.tokenizer(), VOCABULARIES[request.param])


@pytest.fixture(params=WHOLE, ids=lambda output: f"{output.reasoning_parser}-{output.tool_parser}-{output.what}")
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """One whole output."""
    output: Recorded = request.param
    return output


def test_accepts_what_a_model_writes(recorded, vocabulary):
    """Strict tools constrain calls only: whatever is whole is accepted, if calls are written as this model does."""
    accepted = vocabulary.accepts(grammar(recorded, vocabulary), constrained(recorded.text))
    assert accepted == is_written_so(recorded, vocabulary)


def test_required_calls(recorded, vocabulary):
    """At least one call, and nothing but calls behind the reasoning."""
    kinds = [part[0] for part in recorded.said if part[0] != "reasoning"]
    accepted = vocabulary.accepts(grammar(recorded, vocabulary, choice="required"), constrained(recorded.text))
    is_preamble = recorded.tool_parser == "openai" and kinds[-1] == "call"
    assert accepted == (is_written_so(recorded, vocabulary) and (set(kinds) == {"call"} or is_preamble))


CALLS = [output for output in WHOLE if output.what == "one"]


@pytest.fixture(params=CALLS, ids=lambda output: output.tool_parser)
def one_call(request: pytest.FixtureRequest) -> Recorded:
    """An output of each format that is a call of get_weather with {"city": "Paris"}."""
    output: Recorded = request.param
    return output


NO_CALLS = [
    ("get_weather", "get_news"),
    ('"Paris"', "5"),
    ('"city"', '"town"'),
    (PARIS, "{}"),
    (PARIS, '{"city": "Paris", "unit": "K"}'),
    (PARIS, '{"city": "Paris", "more": 1}'),
    (PARIS, f'{{"city":{" " * 50}"Paris"}}'),
    (PARIS, '{"city": "Paris"'),
    (PARIS, "now"),
]


def test_refuses_what_is_no_call_of_a_tool(one_call, vocabulary):
    """Another name, arguments against the schema, white space without end, broken JSON."""
    if not is_written_so(one_call, vocabulary):
        return
    # In Functionary's format what names no tool is text.
    choices: tuple[ToolChoice, ...] = ("required", "auto")
    for choice in choices[: 1 if one_call.tool_parser == "functionary_v3_2" else 2]:
        source = grammar(one_call, vocabulary, choice=choice)
        assert vocabulary.accepts(source, one_call.text)
        for was, instead in NO_CALLS:
            if was in one_call.text:
                assert not vocabulary.accepts(source, one_call.text.replace(was, instead)), instead


@pytest.mark.parametrize("value", ["<parameter=unit>\nK", "<parameter=days>\ntomorrow", "<parameter=more>\n1"])
def test_refuses_values_against_the_schema(vocabulary, value):
    """In tags."""
    call = "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n{}</function>\n</tool_call>"
    source = grammar(Recorded("qwen3_coder", "", "", ()), vocabulary, choice="required")
    assert vocabulary.accepts(source, call.format(""))
    assert vocabulary.accepts(source, call.format("<parameter=days>\n3\n</parameter>\n"))
    assert not vocabulary.accepts(source, call.format(f"{value}\n</parameter>\n"))


def test_one_call_at_most(recorded, vocabulary):
    """Where calls are not parallel, outputs with several are refused, whatever the tools are."""
    num_calls = sum(part[0] == "call" for part in recorded.said)
    is_last = not num_calls or recorded.said[-1][0] == "call"
    accepted = vocabulary.accepts(
        grammar(recorded, vocabulary, tools=TOOLS, parallel=False), constrained(recorded.text)
    )
    assert accepted == (is_written_so(recorded, vocabulary) and num_calls <= 1 and is_last)


def test_an_answer_beside_tools(recorded, vocabulary):
    """The output is an answer that follows the rule, or calls; where there must be a call, only calls."""
    kinds = {part[0] for part in recorded.said}
    sources = [
        grammar(recorded, vocabulary, choice=choice, answer='"{" /[a-z]+/ "}"') for choice in ("auto", "required")
    ]
    if "text" not in kinds and is_written_so(recorded, vocabulary):
        assert all(vocabulary.accepts(source, constrained(recorded.text)) for source in sources)
    elif recorded.tool_parser != "openai":
        assert not any(vocabulary.accepts(source, constrained(recorded.text)) for source in sources)
    before = "<|channel|>final<|message|>" if recorded.tool_parser == "openai" else ""
    if not recorded.reasoning_open:
        assert [vocabulary.accepts(source, f"{before}{{yes}}") for source in sources] == [True, False]


@pytest.mark.parametrize("tool_parser", ["hermes", "none", "openai"])
def test_an_answer_without_tools(vocabulary, tool_parser):
    """The reasoning is free, the answer is not: what is shown as text in front of it would be a part of it."""
    if tool_parser == "openai":
        reasoning_parser, outputs = "openai", [
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>yes",
            "<|channel|>final<|message|>no",
            "<|channel|>commentary<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>yes",
        ]  # fmt: skip
    else:
        reasoning_parser, outputs = "qwen3", ["<think>\nHm.\n</think>yes", "no", "<think>Hm.</think>\n\nyes"]
    recorded = Recorded(tool_parser, "", "", (), reasoning_parser=reasoning_parser)
    source = grammar(recorded, vocabulary, tools=(), answer='"yes" | "no"')
    assert [vocabulary.accepts(source, output) for output in outputs] == [True, True, False]


def test_reasoning_must_end(vocabulary):
    """A required call cannot be left out by going on with reasoning that the prompt has opened."""
    call = f"<tool_call>{json_call('get_weather', PARIS)}</tool_call>"
    for is_open, outputs in ((True, ["Hm.", call, f"Hm.</think>{call}"]), (False, ["Hm.", f"Hm.</think>{call}", call])):
        recorded = Recorded("hermes", "", "", (), reasoning_parser="deepseek_r1", reasoning_open=is_open)
        source = grammar(recorded, vocabulary, choice="required")
        assert [vocabulary.accepts(source, output) for output in outputs] == [False, False, True]


@pytest.mark.parametrize("tool_parser", ["hermes", "llama3_json"])
def test_a_tag_that_is_spelled_is_text(tool_parser):
    """Where it is a token: a text may have its letters, as the parser takes the token alone for the tag."""
    tag = {"hermes": "<tool_call>", "llama3_json": "<|python_tag|>"}[tool_parser]
    vocabulary = Vocabulary(synthetic.tokenizer(), [tag])
    spelled = Vocabulary(synthetic.tokenizer())
    source = grammar(Recorded(tool_parser, "", "", (), reasoning_parser="none"), vocabulary)
    text = spelled.tokenizer.encode(f"The tag {tag}.", add_special_tokens=False).ids
    assert vocabulary.accepts_tokens(source, text)
    [token] = vocabulary.tokenizer.encode(tag, add_special_tokens=False).ids
    assert not vocabulary.accepts_tokens(source, [*text, token, *text])


RUNS_CODE = Tool("python", None, {"type": "object", "properties": {"code": {"type": "string"}}})


@pytest.mark.parametrize("parallel", [True, False])
def test_code_beside_a_strict_tool(vocabulary, parallel):
    """It is free where the tool that runs it is; what the parser would take for another call is not."""
    recorded = Recorded("llama3_json", "", "", (), reasoning_parser="none")
    outputs = {
        "<|python_tag|>print([1, {}])\nx = 2": True,
        "Let me see. <|python_tag|>print(1)": True,
        '<|python_tag|>{"name": "python", "parameters": {"code": 1}}': True,
        '<|python_tag|>{"name": "ping", "parameters": {"a": "one"}}': False,
        '<|python_tag|>[{"name": "ping", "parameters": {"a": "one"}}]': False,
        '<|python_tag|>\nping.call(a="one")': False,
    }
    source = grammar(recorded, vocabulary, tools=(*STRICT, RUNS_CODE), parallel=parallel)
    assert {output: vocabulary.accepts(source, output) for output in outputs} == outputs
    for tools in (STRICT, (*STRICT, dataclasses.replace(RUNS_CODE, strict=True))):
        assert not vocabulary.accepts(grammar(recorded, vocabulary, tools=tools), "<|python_tag|>print(1)")
    source = grammar(recorded, vocabulary, tools=(RUNS_CODE,), choice="required")
    assert not vocabulary.accepts(source, "<|python_tag|>print(1)")


def test_the_end_of_the_reasoning_that_is_spelled_is_reasoning():
    """The answer begins behind the token."""
    vocabulary, spelled = Vocabulary(synthetic.tokenizer(), ["</think>"]), Vocabulary(synthetic.tokenizer())
    recorded = Recorded("none", "", "", (), reasoning_parser="qwen3", reasoning_open=True)
    source = grammar(recorded, vocabulary, tools=(), answer='"yes"')
    thought = spelled.tokenizer.encode("What does </think> mean?", add_special_tokens=False).ids
    for answer, is_one in (("yes", True), (" mean?", False)):
        end = vocabulary.tokenizer.encode(f"</think>{answer}", add_special_tokens=False).ids
        assert vocabulary.accepts_tokens(source, [*thought, *end]) == is_one
    assert not vocabulary.accepts_tokens(source, spelled.tokenizer.encode("Hm.</think>yes").ids)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_nothing_to_constrain(choice):
    """Free answers with free calls, or no tools, have no grammar; a format without calls has none for them."""
    arguments = {"choice": choice, "parallel": True, "answer": None}
    assert ModelFormat("hermes", "qwen3").grammar((), **arguments) is None
    assert ModelFormat("none", "none").grammar(STRICT, **arguments) is None
    assert (ModelFormat("hermes", "none").grammar(TOOLS, **arguments) is None) == (choice == "auto")


def test_keywords_that_llguidance_does_not_know(vocabulary):
    """They do not count; of a strict tool, they make the grammar invalid."""
    [tool] = [dataclasses.replace(TOOLS[2], parameters={"type": "object", "not": {"required": ["a"]}})]
    recorded = Recorded("hermes", "", "", ())
    call = f"<tool_call>{json_call('ping', OSLO)}</tool_call>"
    assert vocabulary.accepts(grammar(recorded, vocabulary, tools=[tool], choice="required"), call)
    with pytest.raises(AssertionError, match="not"):
        vocabulary.accepts(grammar(recorded, vocabulary, tools=[dataclasses.replace(tool, strict=True)]), call)


def test_values_of_any_text(vocabulary):
    """Qwen3-Coder's texts of an enum, whatever is in them; what is no text cannot be the value of a string."""
    schema = {"type": "object", "properties": {"\x7f": {"type": "string", "enum": ["a", 1, "\x7f", "\u00e9"]}}}
    [tool] = [dataclasses.replace(TOOLS[2], parameters=schema, strict=True)]
    source = grammar(Recorded("qwen3_coder", "", "", ()), vocabulary, tools=[tool], choice="required")
    for value, is_one in (("a", True), ("\x7f", True), ("\u00e9", True), ("1", False)):
        parameter = f"<parameter=\x7f>\n{value}\n</parameter>\n"
        call = f"<tool_call>\n<function=ping>\n{parameter}</function>\n</tool_call>"
        assert vocabulary.accepts(source, call) == is_one, value


PYTHON_CALLS = {
    'search(query="a", exact=True)': True,
    "search(query='a\\'b', tags=[\"x\"], exact=false, note=None)": True,
    "search()": True,
    "search(exact=True, query='a')": False,
    "search(query=a)": False,
    "search(exact=maybe)": False,
    "search(query='a'": False,
    "search(, query='a')": False,
    "search(query='a',)": False,
    "get_weather(city='Oslo', unit='C')": True,
    'get_weather(city="Oslo",\ndays=3)': True,
    "get_weather(city='Oslo', unit='K')": False,
    "get_weather(unit='C')": False,
    "get_weather(city='Oslo', days='3')": False,
    "ping()": True,
    "ping(a=1)": False,
}


@pytest.mark.parametrize("tool_parser", ["pythonic", "lfm2"])
def test_keywords_follow_the_schema(vocabulary, tool_parser):
    """In its order, those that are not required perhaps; constants and strings as Python or JSON have them."""
    recorded = Recorded(tool_parser, "", "", ())
    tags = ("<|tool_call_start|>", "<|tool_call_end|>") if tool_parser == "lfm2" else ("", "")
    for choice in ("auto", "required"):
        source = grammar(recorded, vocabulary, choice=choice)
        found = {call: vocabulary.accepts(source, f"[{call}]".join(tags)) for call in PYTHON_CALLS}
        assert found == PYTHON_CALLS


@pytest.mark.parametrize("tool_parser", ["pythonic", "lfm2"])
def test_keywords_of_a_tool_that_need_not_follow_its_schema(vocabulary, tool_parser):
    """Are any, with any values; what is no call stays none."""
    recorded = Recorded(tool_parser, "", "", ())
    tags = ("<|tool_call_start|>", "<|tool_call_end|>") if tool_parser == "lfm2" else ("", "")
    source = grammar(recorded, vocabulary, tools=TOOLS, parallel=False)
    outputs = {"ping(a=1, b=[null, 'x'])": False, "ping(a=[1], b='x', c=True)": True, "ping(1)": False, "pong()": False}
    assert {call: vocabulary.accepts(source, f"[{call}]".join(tags)) for call in outputs} == outputs
