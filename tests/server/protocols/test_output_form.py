"""The form of an output, in every spelling: to which grammar it is read, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.grammars import GBNF_LINE
from rbee.server.errors import Refusal
from rbee.server.protocols.output_form import of_choice, of_regex, of_schema
from tests.raw_client import CHAT, COMPLETIONS
from tests.server.protocols.forms_parts import allows
from tests.server.protocols.parameters_parts import BOTH, read, refusal

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def _nested(depth: int) -> Any:
    """A schema of so many arrays in each other."""
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": SCHEMA},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
        ({"json_schema": SCHEMA}, "json_schema"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
    ],
)
@BOTH
def test_schemas(route, fields, param):
    """All spellings are one grammar, whether strict or not; the one that was used is to blame."""
    generation = read(route, fields)
    assert generation.grammar == of_schema(SCHEMA, "x").source
    assert generation.grammar_param == param
    assert allows(generation.grammar, '{"a": 5}')
    assert not allows(generation.grammar, '{"a": "x"}')


@BOTH
def test_other_forms(route):
    """Regular expressions, choices, grammars, any object: each in both spellings."""

    def grammar(**fields: Any) -> str:
        return read(route, fields).grammar

    def outputs(value: str, **fields: Any) -> str:
        assert grammar(**fields) == grammar(structured_outputs={value: next(iter(fields.values()))})
        return grammar(**fields)

    assert allows(outputs("regex", guided_regex="a+b"), "aab")
    assert allows(outputs("choice", guided_choice=["yes", "no"]), "no")
    assert outputs("grammar", guided_grammar='start: "a"') == 'start: "a"'
    assert grammar(grammar='root ::= "a"') == GBNF_LINE + 'root ::= "a"'
    anything = grammar(response_format={"type": "json_object"})
    assert anything == grammar(structured_outputs={"json_object": True})
    assert allows(anything, '{"a": [1, {"b": null}]}')
    assert not allows(anything, "[]")


@pytest.mark.parametrize(
    ("fields", "usual"),
    [({"regex": "a+"}, {"guided_regex": "a+"}), ({"ebnf": 'root ::= "a"'}, {"grammar": 'root ::= "a"'})],
    ids=["regex", "ebnf"],
)
def test_words_of_sglang(fields, usual):
    """Its names for a regular expression and for a grammar."""
    assert read(CHAT, fields).grammar == read(CHAT, usual).grammar != ""


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None, "grammar": ""},
        {"structured_outputs": {"json_object": False}},
    ],
)
def test_what_asks_for_nothing(fields):
    """Then any output will do, and nothing is sent to the engine."""
    assert read(CHAT, fields).grammar == ""


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex", "send one of them"),
        ({"structured_outputs": {"json": SCHEMA, "choice": ["a"]}}, "structured_outputs.choice", "send one of them"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "is missing",
        ),
        ({"response_format": {"type": "structured"}}, "response_format.type", "structural_tag or json_schema"),
        ({"response_format": {"type": "json_object", "schem": {}}}, "response_format.schem", "response_format.schema?"),
        ({"response_format": {}}, "response_format.type", "is missing"),
        ({"structured_outputs": {"whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern", "leave it out"),
        ({"structured_outputs": {"regexp": "x"}}, "structured_outputs.regexp", "structured_outputs.regex?"),
        (
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            "guided_regex",
            "response_format.type and guided_regex both",
        ),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema", "leave it out"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": SCHEMA}}},
            "response_format.json_schema",
            "response_format.type 'json_schema'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}, "schema": SCHEMA}},
            "response_format.schema",
            "response_format.json_schema.schema",
        ),
        ({"guided_json": "{"}, "guided_json", "is not valid JSON"),
        ({"guided_json": "[]"}, "guided_json", "an object"),
        ({"guided_json": _nested(900)}, "guided_json", "nested too deeply"),
        ({"guided_regex": ""}, "guided_regex", "is empty"),
        ({"guided_grammar": ""}, "guided_grammar", "is empty"),
        ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar", "is empty"),
        ({"guided_choice": []}, "guided_choice", "1 to 4096 texts"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "an empty text"),
    ],
)
def test_refusals_name_the_field_and_the_remedy(fields, param, words):
    """Of what no grammar is made of."""
    error = refusal(COMPLETIONS, fields)
    assert error.param == param
    assert words in error.message


def test_only_ends_that_end_the_output():
    """A model's tokens for the end may come where the grammar allows an end, unless they are to be ignored."""
    form = {"guided_regex": "a+"}
    assert read(CHAT, form).grammar_end_ids == (7, 8)
    assert read(CHAT, form | {"ignore_eos": True}).grammar_end_ids == ()


def test_white_space_is_bounded():
    """Of the space between two parts; compact outputs have none."""
    schema = {"type": "array", "items": {"type": "integer"}}
    source, compact = of_schema(schema, "x").source, of_schema(schema, "x", compact=True).source
    assert allows(source, "[1,2]")
    assert allows(source, "[ 1, 2 ]")
    assert allows(source, "[\n    1,\n    2\n]")
    assert allows(compact, "[1,2]")
    for text in ("[  1]", "[\n\n1]", "[\t1]", f"[\n{21 * ' '}1]", " [1]", "[1] "):
        assert not allows(source, text), text
    assert not allows(compact, "[1, 2]")


def test_a_schema_cannot_loosen_its_white_space():
    """What llguidance reads beside a schema's keywords is the server's."""
    with pytest.raises(Refusal, match="x has 'x-guidance', which is not supported; leave it out"):
        of_schema(SCHEMA | {"x-guidance": {"whitespace_pattern": "\\s*", "lenient": True}}, "x")


@pytest.mark.parametrize(
    ("regex", "text", "other"),
    [
        ("a/b", "a/b", "ab"),
        (r"a\/b", "a/b", "ab"),
        ("[/x]+", "/x/", "y"),
        (r"\d{3}", "123", "\u0661\u0662\u0663"),
        (r"[\d.]+", "1.5", "\u0661"),
        (r"\\d", "\\d", "5"),
        ("^ab$", "ab", "abc"),
        ("a|bc", "bc", "abc"),
        ("a\nb", "a\nb", "ab"),
        ("é+", "éé", "e"),
        ("#", "#", ""),
    ],
)
def test_regular_expressions(regex, text, other):
    """Slashes, line breaks and digits, as everywhere else; all of the output has to match."""
    form = of_regex(regex, "x")
    assert form is not None
    assert allows(form.source, text)
    assert not allows(form.source, other)


def test_choices_are_texts():
    """Whatever is in them."""
    texts = ['"', "\\", "a\nb\t\r", "start: /x/", "\x00\x07\x1f\x7f", "é😀 ", '" | /.*/ | "', "//", "#", "<|im_end|>"]
    form = of_choice(texts, "x")
    assert form is not None
    assert all(allows(form.source, text) for text in texts)
    assert not allows(form.source, "x")


def test_an_output_is_any_of_the_most_choices_that_there_can_be():
    """Also one that begins another."""
    form = of_choice([f"a choice, number {number}" for number in range(1, 4097)], "x")
    assert form is not None
    assert all(allows(form.source, f"a choice, number {number}") for number in (1, 40, 409, 4096))
    assert not allows(form.source, "a choice, number 4097")


def test_a_refusal_is_what_a_lenient_server_says_too():
    """A form is never left out."""
    with pytest.raises(Refusal):
        read(CHAT, {"response_format": {"type": "grammar"}})
