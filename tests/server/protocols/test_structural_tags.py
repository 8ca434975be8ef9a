"""Structural tags: which outputs each format allows, in both forms, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from rbee.models import synthetic
from rbee.server.errors import Refusal
from rbee.server.protocols.fields import FieldReader
from rbee.server.protocols.structural_tags import to_lark
from rbee.server.text.named_tokens import NamedTokens
from tests.raw_client import CHAT
from tests.server.protocols.forms_parts import allows
from tests.server.protocols.parameters_parts import BOTH, read, refusal
from tests.server.protocols.test_whole_outputs import chat
from tests.server.text.output.grammar_parts import Vocabulary

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
OSLO = '{"city": "Oslo"}'
AN_OBJECT = {"type": "json_schema", "json_schema": CITY}
FREE = {"type": "any_text"}


def const(value: str) -> dict[str, Any]:
    """A text."""
    return {"type": "const_string", "value": value}


def tag(begin: str, content: dict[str, Any], end: Any, **more: Any) -> dict[str, Any]:
    """A tag."""
    return {"type": "tag", "begin": begin, "content": content, "end": end} | more


def of(kind: str, **fields: Any) -> dict[str, Any]:
    """Another format."""
    return {"type": kind, **fields}


F, G = tag("<f=a>", AN_OBJECT, "</f>"), tag("<f=b>", const("x"), "</f>")
TRIGGERED = of("triggered_tags", triggers=["<f="], tags=[F, G])
CALL, OTHER = f"<f=a>{OSLO}</f>", "<f=b>x</f>"

OUTPUTS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("const_string", const('say "hi"\n'), ['say "hi"\n'], ["", 'say "hi"', 'say "hi"\n!']),
    ("an empty text", const(""), [""], ["a"]),
    ("json_schema", AN_OBJECT, [OSLO, '{"city":"x"}'], ["{}", '{"city": 1}', f"{OSLO}!"]),
    ("any JSON", of("json_schema", json_schema=True), ["1", "[null]", OSLO], ["x", ""]),
    ("any_text", FREE, ["", "a\nb <f= </f>"], []),
    ("regex", of("regex", pattern=r"[a-z]+|\d{2}"), ["ab", "12"], ["a1", "1", ""]),
    ("sequence", of("sequence", elements=[const("a"), const("b"), FREE]), ["ab", "ab and c"], ["a", "b", "ba"]),
    (
        "or",
        of("or", elements=[const("a"), of("sequence", elements=[const("b"), const("c")])]),
        ["a", "bc"],
        ["b", "abc"],
    ),
    ("optional", of("optional", content=const("a")), ["", "a"], ["aa"]),
    ("star", of("star", content=const("ab")), ["", "ab", "abab"], ["aba"]),
    ("plus", of("plus", content=const("ab")), ["ab", "abab"], ["", "aba"]),
    ("repeat", of("repeat", min=2, max=3, content=const("a")), ["aa", "aaa"], ["a", "aaaa"]),
    ("repeat without an end", of("repeat", min=2, max=-1, content=const("a")), ["aa", "a" * 9], ["a"]),
    ("tag", tag("<t>", AN_OBJECT, "</t>"), [f"<t>{OSLO}</t>"], [OSLO, f"<t>{OSLO}", f"<t>{OSLO}</t>."]),
    (
        "a tag of free text",
        tag("<t>", FREE, "</t>"),
        ["<t></t>", "<t>a <b> </t>"],
        ["<t>", "<t>a</t>b", "<t>a</t></t>"],
    ),
    ("several ends", tag("<t>", FREE, ["</t>", "END"]), ["<t>a</t>", "<t>aEND"], ["<t>a</t>END", "<t>aEND</t>"]),
    ("an end of any JSON", tag("(", AN_OBJECT, [")", "]"]), [f"({OSLO})", f"({OSLO}]"], [f"({OSLO}"]),
    ("no begin and no end", tag("", const("a"), ""), ["a"], ["", "aa"]),
    (
        "a tag of a regex whose end it might match",
        tag("<", of("regex", pattern="[a-z]+|b"), ["end", ">"]),
        ["<a>", "<xend"],
        ["<end", "<>", "<1>"],
    ),
    (
        "free text last in a sequence in a tag",
        tag("<t>", of("sequence", elements=[const("a:"), FREE]), "</t>"),
        ["<t>a:</t>", "<t>a: b</t>"],
        ["<t>b</t>", "<t>a: b", "<t>a:</t>c"],
    ),
    (
        "free text in alternatives in a tag",
        tag("<t>", of("or", elements=[const("a"), tag("(", FREE, ")")]), "</t>"),
        ["<t>a</t>", "<t>(b)</t>"],
        ["<t>(b</t>", "<t>b</t>"],
    ),
    (
        "triggered_tags",
        TRIGGERED,
        ["", "Hi.", CALL, f"So: {CALL} and {OTHER}{OTHER}.", "a <f", "</f>"],
        ["<f=c>", "<f=a>{}</f>", "a <f=", f"{CALL} <f=b>y", "<f=b>x"],
    ),
    (
        "at least one",
        TRIGGERED | {"at_least_one": True},
        [CALL, f"{CALL}{OTHER}", f"{OTHER} and {CALL}."],
        ["", "Hi.", f"Hi. {CALL}"],
    ),
    (
        "the first alone",
        TRIGGERED | {"stop_after_first": True},
        ["", "Hi.", CALL, f"So: {CALL}"],
        [f"{CALL}.", f"{CALL}{CALL}", "a <f="],
    ),
    (
        "the first alone, at least",
        TRIGGERED | {"at_least_one": True, "stop_after_first": True},
        [CALL],
        ["", f"a{CALL}", f"{CALL}."],
    ),
    (
        "triggered tags in a tag",
        tag("<t>", TRIGGERED, "</t>"),
        ["<t></t>", f"<t>a{CALL}b{OTHER}</t>"],
        [f"<t>{CALL}", "<t>a</t>b", "<t><f=b></t>"],
    ),
    (
        "two triggers",
        of("triggered_tags", triggers=["<f", "[g"], tags=[F, tag("[g]", FREE, "[/g]")]),
        [f"a{CALL}[g]b <f=[/g]c", "[g][/g]"],
        ["[g]", "<f=b>"],
    ),
    (
        "tags_with_separator",
        of("tags_with_separator", tags=[F, G], separator=", "),
        ["", CALL, f"{CALL}, {OTHER}, {CALL}"],
        [f"{CALL}{OTHER}", f"{CALL}, ", f"a{CALL}"],
    ),
    (
        "one of them at least",
        of("tags_with_separator", tags=[G], separator=";", at_least_one=True),
        [OTHER, f"{OTHER};{OTHER}"],
        [""],
    ),
    (
        "one of them at most",
        of("tags_with_separator", tags=[G], separator=";", stop_after_first=True),
        ["", OTHER],
        [f"{OTHER};{OTHER}"],
    ),
    (
        "thinking, then an answer",
        of("sequence", elements=[tag("<think>", FREE, "</think>"), AN_OBJECT]),
        [f"<think>Hm {OSLO}</think>{OSLO}"],
        [OSLO, f"<think>Hm</think>{OSLO}.", "<think>Hm</think>Yes."],
    ),
]


@pytest.mark.parametrize(("form", "good", "bad"), [case[1:] for case in OUTPUTS], ids=[case[0] for case in OUTPUTS])
def test_what_each_format_allows(form, good, bad):
    """In a response format, and as vLLM's parameter: an object, or its text."""
    whole = {"type": "structural_tag", "format": form}
    source = read(CHAT, {"response_format": whole}).grammar
    for given in (whole, json.dumps(whole), {"format": form}):
        assert read(CHAT, {"structured_outputs": {"structural_tag": given}}).grammar == source
    assert {text: allows(source, text) for text in good} == dict.fromkeys(good, True)
    assert {text: allows(source, text) for text in bad} == dict.fromkeys(bad, False)


@BOTH
@pytest.mark.parametrize("as_text", [False, True])
def test_the_older_form(route, as_text):
    """Tags of JSON schemas behind triggers, with free text around them; a schema may be JSON text, or absent."""
    schema: Any = json.dumps(CITY) if as_text else CITY
    older = {
        "type": "structural_tag",
        "structures": [{"begin": "<f=a>", "schema": schema, "end": "</f>"}, {"begin": "<g>", "end": "</g>"}],
        "triggers": ["<f=", "<g"],
    }
    source = read(route, {"response_format": older}).grammar
    outputs = {
        "": True,
        f"a {CALL} b {CALL}": True,
        "<g>[1]</g>": True,
        "<g>x": False,
        "<f=a>{}</f>": False,
        "<f=b>": False,
    }
    assert {text: allows(source, text) for text in outputs} == outputs
    assert read(route, {"structured_outputs": {"structural_tag": json.dumps(older)}}).grammar == source


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "format"),
    ({"format": None}, "format"),
    ({"structures": []}, "triggers"),
    ({"structures": [], "triggers": ["<"]}, "structures"),
    ({"format": FREE, "triggers": ["<"]}, "triggers"),
    ({"structures": [{"begin": "<f>", "end": "", "schema": "{"}], "triggers": ["<"]}, "structures[0].schema"),
    ({"structures": [{"begin": "<f>", "end": "", "schema": "1"}], "triggers": ["<"]}, "structures[0].schema"),
    ({"structures": [{"begin": "<f>"}], "triggers": ["<"]}, "structures[0].end"),
    ({"structures": [{"begin": "[f]", "end": ""}], "triggers": ["<"]}, "structures[0].begin"),
    ({"structures": [{"begin": "<f>", "end": ""}], "triggers": ["<", "<f"]}, "structures[0].begin"),
    ({"structures": [{"begin": "<f>", "end": ""}], "triggers": [""]}, "structures[0].begin"),
    ({"format": of("grammar", grammar="root ::= x")}, "format.type"),
    ({"format": of("token", token=1)}, "format.type"),
    ({"format": of("dispatch", rules=[])}, "format.type"),
    ({"format": {}}, "format.type"),
    ({"format": of(["x"])}, "format.type"),  # type: ignore[arg-type]
    ({"format": of("const_string")}, "format.value"),
    ({"format": const("a") | {"values": 1}}, "format.values"),
    ({"format": of("json_schema", json_schema=False)}, "format.json_schema"),
    ({"format": of("json_schema", json_schema=CITY, style="qwen_xml")}, "format.style"),
    ({"format": of("json_schema", json_schema=CITY, any_order=True)}, "format.any_order"),
    ({"format": of("json_schema", json_schema=CITY | {"x-guidance": {}})}, "format.json_schema"),
    ({"format": of("regex", pattern="")}, "format.pattern"),
    ({"format": of("regex", pattern="a)(b")}, "format.pattern"),
    ({"format": FREE | {"excludes": ["a"]}}, "format.excludes"),
    ({"format": FREE | {"max_tokens": 5}}, "format.max_tokens"),
    ({"format": of("sequence", elements=[])}, "format.elements"),
    ({"format": of("sequence", elements=[FREE, const("a")])}, "format.elements[0]"),
    ({"format": of("star", content=FREE)}, "format.content"),
    ({"format": of("repeat", min=2, max=1, content=const("a"))}, "format.min"),
    ({"format": of("repeat", min=0, max=10**9, content=const("a"))}, "format.min"),
    ({"format": tag("<t>", FREE, "")}, "format.content"),
    ({"format": tag("<t>", FREE, [])}, "format.end"),
    ({"format": tag("<t>", FREE, of("token", token=5))}, "format.end"),
    ({"format": tag("<t>", const("a"), "</t>") | {"begin": of("token", token="<t>")}}, "format.begin"),
    ({"format": TRIGGERED | {"tags": []}}, "format.tags"),
    ({"format": TRIGGERED | {"excludes": ["a"]}}, "format.excludes"),
    ({"format": TRIGGERED | {"tags": [F | {"type": "gat"}]}}, "format.tags[0].type"),
    ({"format": of("tags_with_separator", tags=[], separator="")}, "format.tags"),
    ({"format": json.loads('{"type":"plus","content":' * 70 + "{}" + "}" * 70)}, ""),
    ({"type": "gat", "format": FREE}, "type"),
]


@pytest.mark.parametrize(("given", "where"), REFUSED)
def test_what_is_refused_by_name(given, where):
    """Other formats, fields that are not followed, free text that nothing ends: with the place in the request."""
    error = refusal(CHAT, {"structured_outputs": {"structural_tag": given}})
    path = "structured_outputs.structural_tag"
    assert error.param == (f"{path}.{where}" if where else path)
    assert error.param in error.message
    assert len(error.message) < 400


def test_what_is_no_object():
    """The text of something else."""
    for text in ("x", "[]"):
        assert (
            refusal(CHAT, {"structured_outputs": {"structural_tag": text}}).param == "structured_outputs.structural_tag"
        )


def test_tags_that_are_tokens():
    """Where a text has the name of one, the model writes that token, and no free text has it."""
    vocabulary = Vocabulary(synthetic.tokenizer(), ["<tool_call>", "</tool_call>"])
    spelled = Vocabulary(synthetic.tokenizer())
    ids = {name: vocabulary.tokenizer.token_to_id(name) or 0 for name in vocabulary.special_tokens}
    form = of(
        "triggered_tags",
        triggers=["<tool_"],
        tags=[tag('<tool_call>\n{"name": "f", "arguments": ', AN_OBJECT, "}\n</tool_call>")],
    )
    source = to_lark({"format": form}, "", FieldReader(lenient=False), NamedTokens(ids))
    call = f'<tool_call>\n{{"name": "f", "arguments": {OSLO}}}\n</tool_call>'
    for text, is_one in [
        ("Hi.", True),
        (f"So: {call}{call}.", True),
        ("<tool_call>x", False),
        ("a</tool_call>", False),
    ]:
        assert vocabulary.accepts(source, text) == is_one, text
    letters = spelled.tokenizer.encode("The tag <tool_call> and <tool_", add_special_tokens=False).ids
    assert vocabulary.accepts_tokens(source, letters)


def test_names_of_tokens_in_a_text():
    """The longest that stands there counts, and no place is within one."""
    names = NamedTokens({"<a>": 1, "<a><b>": 2, "[X]": 3})
    assert names.split("") == []
    assert names.split("x<a>y[X]<a><b><b>") == ["x", 1, "y", 3, 2, "<b>"]
    assert [names.end_of("x<a>y", place) for place in range(6)] == [0, 1, 4, 4, 4, 5]
    assert NamedTokens({}).split("<a>") == ["<a>"]


def test_beside_reasoning_and_tools():
    """The answer behind the reasoning has the form; with tools it is refused, as any grammar of the whole answer."""
    form = {"type": "structural_tag", "format": TRIGGERED}
    source = chat(response_format=form).grammar
    assert allows(source, f"Hm <f=.</think>So: {CALL}")
    assert not allows(source, "Hm.</think>So: <f=c")
    function = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(Refusal, match="no place for calls") as caught:
        chat(response_format=form, tools=[function])
    assert caught.value.param == "response_format"


def test_a_server_follows_one(synthetic_server):
    """The answer has the form. One whose schema cannot be enforced is blamed by the field."""

    def answered(form: dict[str, Any]) -> Any:
        asked = {
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "structural_tag", "format": form},
        }
        return httpx.post(synthetic_server.url + CHAT, json=asked, timeout=60).json()

    pets = of("or", elements=[const("cat"), const("dog")])
    [choice] = answered(of("sequence", elements=[const("Pet: "), pets]))["choices"]
    assert choice["message"]["content"] in ("Pet: cat", "Pet: dog")
    assert choice["finish_reason"] == "stop"
    error = answered(of("json_schema", json_schema={"type": "array", "uniqueItems": True}))["error"]
    assert error["param"] == "response_format"
    assert 'Unimplemented keys: ["uniqueItems"]' in error["message"]
