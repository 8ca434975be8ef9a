"""The form that a request wants its output to have, in the spelling of every protocol: from fields to a grammar.

Owns the spellings, and the grammar of each kind of form. Whether that compiles is found out later, elsewhere
(`rbee.server.text.grammars`). Does not know tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.grammars import GBNF_LINE, GBNF_NAME
from rbee.server.errors import invalid
from rbee.server.protocols.lark_options import check_lark
from rbee.server.protocols.regular_expressions import in_slashes, one_of
from rbee.server.protocols.structural_tags import decoded, to_lark
from rbee.server.protocols.told_apart import with_any_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rbee.server.protocols.fields import FieldReader
    from rbee.server.text.tokenizer import TextCodec

# Between two parts of a JSON text: nothing, a space, or a line break and an indentation. A model cannot run on in it.
_WHITE_SPACE = " |\\n {0,20}"
_MAX_CHOICES = 4096
_STRUCTURAL_TAG = "structural_tag"
_ANY_OBJECT = {"type": "object"}
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


class Form(NamedTuple):
    """What an output may be."""

    source: str  # a grammar of `rbee.grammars`
    param: str  # the field that asks for it
    rule: str  # the same as the body of a rule
    is_grammar: bool = False  # the client wrote it as a grammar


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's description of a JSON schema; `strict` or not, it is enforced."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool = False


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's form of an answer; `schema` is llama.cpp's, beside json_object."""

    type: str
    json_schema: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The same in Responses and in Anthropic's requests, which have all in one object."""

    type: str
    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool = False


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's form of an output, one of these."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False


_NEUTRAL_STRUCTURED: dict[str, tuple[Any, ...]] = {
    "disable_additional_properties": (False,),
    "disable_fallback": (False,),
    "whitespace_pattern": (),
}


def only_form(forms: Iterable[Form | None]) -> Form | None:
    """The one that is asked for; None: any output will do.

    Raises:
        Refusal: there are several.
    """
    asked = [form for form in forms if form is not None]
    if len(asked) > 1:
        first, second = asked[0].param, asked[1].param
        raise invalid(second, f"{first} and {second} both say what the output must be; send one of them.")
    return asked[0] if asked else None


def of_response_format(given: dict[str, Any] | None, reader: FieldReader, codec: TextCodec) -> Form | None:
    """OpenAI's `response_format` of chat and completions; a structural tag is vLLM's and SGLang's."""
    if given is None:
        return None
    if given.get("type") == _STRUCTURAL_TAG:
        return of_structural_tag(given, "response_format", reader, codec)
    path = "response_format."
    asked = reader.read(given, ResponseFormat, {}, path)
    if asked.type == "json_schema":
        _check_absent(asked.schema, f"{path}schema", f"{path}json_schema.schema")
        if asked.json_schema is None:
            raise invalid(f"{path}json_schema", f"{path}json_schema is missing.", code="missing_parameter")
        described = reader.read(asked.json_schema, JsonSchema, {}, f"{path}json_schema.")
        return of_schema(described.schema, f"{path}json_schema.schema")
    _check_absent(asked.json_schema, f"{path}json_schema", f"{path}type 'json_schema'")
    if asked.type == "json_object":
        if asked.schema is None:
            return of_schema(_ANY_OBJECT, f"{path}type")
        return of_schema(asked.schema, f"{path}schema")
    _check_is_text(asked.type, path, _STRUCTURAL_TAG)
    _check_absent(asked.schema, f"{path}schema", f"{path}type 'json_object'")
    return None


def of_text_format(given: dict[str, Any] | None, path: str, reader: FieldReader) -> Form | None:
    """`text.format` of Responses, and Anthropic's `output_config.format` or `output_format`; `path` ends with a dot."""
    if given is None:
        return None
    asked = reader.read(given, TextFormat, {}, path)
    if asked.type == "json_schema":
        if asked.schema is None:
            raise invalid(f"{path}schema", f"{path}schema is missing.", code="missing_parameter")
        return of_schema(asked.schema, f"{path}schema")
    if asked.type != "json_object":
        _check_is_text(asked.type, path)
    _check_absent(asked.schema, f"{path}schema", f"{path}type 'json_schema'")
    return of_schema(_ANY_OBJECT, f"{path}type") if asked.type == "json_object" else None


def of_structured_outputs(given: dict[str, Any] | None, reader: FieldReader, codec: TextCodec) -> Form | None:
    """`structured_outputs` of vLLM."""
    if given is None:
        return None
    path = "structured_outputs."
    asked = reader.read(given, StructuredOutputs, _NEUTRAL_STRUCTURED, path)
    compact = asked.disable_any_whitespace
    any_object = of_schema(_ANY_OBJECT, f"{path}json_object", compact=compact) if asked.json_object else None
    return only_form(
        [
            of_json(asked.json, f"{path}json", compact=compact),
            of_regex(asked.regex, f"{path}regex"),
            of_choice(asked.choice, f"{path}choice"),
            of_vllm_grammar(asked.grammar, f"{path}grammar"),
            of_structural_tag(asked.structural_tag, f"{path}structural_tag", reader, codec),
            any_object,
        ]
    )


def of_json(given: str | dict[str, Any] | None, param: str, *, compact: bool = False) -> Form | None:
    """A JSON schema, or its text."""
    return None if given is None else of_schema(decoded(given, param, "a JSON schema"), param, compact=compact)


def of_structural_tag(
    given: str | dict[str, Any] | None, param: str, reader: FieldReader, codec: TextCodec
) -> Form | None:
    """A structural tag, or its text; `codec` is the model's."""
    if given is None:
        return None
    source = to_lark(decoded(given, param, "a structural tag"), f"{param}.", reader, codec.named_tokens)
    return Form(source, param, f"%lark {{\n{source}\n}}", is_grammar=True)


def of_schema(schema: dict[str, Any], param: str, *, compact: bool = False) -> Form:
    """What is valid under a JSON schema; `compact`: without white space."""
    if "x-guidance" in schema:
        message = f"{param} has 'x-guidance', which is not supported; leave it out."
        raise invalid(param, message, code="invalid_grammar")
    spacing = {"whitespace_flexible": False} if compact else {"whitespace_pattern": _WHITE_SPACE}
    try:
        text = msgspec.json.encode({**with_any_of(schema), "x-guidance": spacing}).decode()
    except RecursionError:
        raise invalid(param, f"{param} is nested too deeply; make it flatter.", code="invalid_grammar") from None
    return _of_rule(f"%json {text}", param)


def of_regex(given: str | None, param: str) -> Form | None:
    """What matches a regular expression from its beginning to its end."""
    if given is None:
        return None
    if not given:
        raise invalid(param, f"{param} is empty, and an output would be too; leave it out.")
    return _of_rule(f"/{in_slashes(given)}/", param)


def of_choice(given: list[str] | None, param: str) -> Form | None:
    """One of these texts."""
    if given is None:
        return None
    if not 1 <= len(given) <= _MAX_CHOICES:
        raise invalid(param, f"{param} must hold 1 to {_MAX_CHOICES} texts, not {len(given)}.")
    if not all(given):
        raise invalid(param, f"{param} holds an empty text; leave it out.")
    # As one expression: the parser of grammars follows at most 2000 ways at once.
    return _of_rule(f"/{one_of(given)}/", param)


def of_grammar(given: str | None, param: str) -> Form | None:
    """A grammar in llguidance's Lark, or in llama.cpp's GBNF, which is known by its `::=`. "" asks for nothing."""
    if not given:
        return None
    if _GBNF_RULE.search(given):
        return Form(GBNF_LINE + given, param, GBNF_NAME, is_grammar=True)
    check_lark(given, param)
    return Form(given, param, f"%lark {{\n{given}\n}}", is_grammar=True)


def of_vllm_grammar(given: str | None, param: str) -> Form | None:
    """The same in vLLM's fields, which nobody sends without a grammar."""
    if given == "":
        raise invalid(param, f"{param} is empty, so that no output follows it; leave it out.")
    return of_grammar(given, param)


def _check_is_text(kind: str, path: str, *others: str) -> None:
    if kind != "text":
        known = ", ".join(("text", "json_object", *others))
        message = f"{path}type is {kind[:64]!r}, which is not supported; it must be {known} or json_schema."
        raise invalid(f"{path}type", message, code="unsupported_parameter")


def _check_absent(given: Any, param: str, instead: str) -> None:
    """Raise Refusal for what the type of a format has no place for."""
    if given is not None:
        raise invalid(param, f"{param} is not heeded beside this type; send {instead}, or leave it out.")


def _of_rule(rule: str, param: str) -> Form:
    return Form(f"start: {rule}", param, rule)
