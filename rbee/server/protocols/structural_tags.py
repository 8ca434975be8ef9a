"""Structural tags as xgrammar describes them, in its two forms: from their objects to a grammar in Lark.

Owns which formats there are, and what each becomes. The older form, `structures` and `triggers`, is triggered_tags of
JSON schemas. Does not know where a request has them.

Free text ends where the tag around it does, or a trigger comes. So a format with free text may only stand last in a tag
or in the output: what follows it would have no beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.regular_expressions import closes_too_much, in_slashes, one_of
from rbee.server.protocols.structural_tag_schemas import (
    NEUTRAL,
    AnyText,
    ConstString,
    JsonSchema,
    Outer,
    Regex,
    Repeat,
    Repeated,
    Several,
    Structure,
    Tag,
    TagsWithSeparator,
    TriggeredTags,
)
from rbee.server.protocols.told_apart import with_any_of
from rbee.server.protocols.tools import check_depth
from rbee.server.text.output.lark import TEXT, Lark, either, literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rbee.server.protocols.fields import FieldReader
    from rbee.server.text.named_tokens import NamedTokens

_MOST_REPEATS = 1000  # what a repetition takes grows with its bounds


_Ends = list[str]  # what a format is followed by: one of these texts


def decoded(given: str | dict[str, Any], param: str, what: str) -> dict[str, Any]:
    """An object, which may be given as JSON text; `what` it is."""
    if not isinstance(given, str):
        return given
    try:
        value = msgspec.json.decode(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(param, f"{param} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise invalid(param, f"{param} must be {what} that is an object.")
    return value


def to_lark(given: dict[str, Any], path: str, reader: FieldReader, tokens: NamedTokens) -> str:
    """The grammar of outputs that a structural tag allows.

    Args:
        given: the tag, in either form.
        path: where it stands in the request; "" or with a dot behind it.
        reader: of the request.
        tokens: of the model. Where a text has the name of one, the model writes that token.

    Raises:
        Refusal: a format is none, or not supported.
    """
    check_depth(given, path.rstrip("."))
    outer = reader.read(given, Outer, {}, path)
    if outer.type != "structural_tag":
        raise invalid(f"{path}type", f"{path}type must be 'structural_tag', not {outer.type[:64]!r}.")
    writer = _Writer(reader, tokens)
    if outer.format is not None:
        for name in ("structures", "triggers"):
            if getattr(outer, name) is not None:
                message = f"{path}{name} belongs to the older form of structural tags; leave it out beside format."
                raise invalid(f"{path}{name}", message)
        return writer.source(outer.format, f"{path}format")
    for name in ("structures", "triggers"):
        if getattr(outer, name) is None:
            instead = f"{path}format" if name == "structures" else f"{path}triggers"
            raise invalid(instead, f"{instead} is missing.", code="missing_parameter")
    return writer.older_source(outer.structures or [], outer.triggers or [], path)


class _Writer:
    """Writes one grammar."""

    def __init__(self, reader: FieldReader, tokens: NamedTokens) -> None:
        self._reader = reader
        self._tokens = tokens
        self._lark = Lark(lambda _: None)
        self._formats: dict[str, Callable[[dict[str, Any], str, _Ends | None], str]] = {
            "any_text": self._any_text,
            "const_string": self._const_string,
            "json_schema": self._json_schema,
            "optional": self._repeated,
            "or": self._or,
            "plus": self._repeated,
            "regex": self._regex,
            "repeat": self._repeat,
            "sequence": self._sequence,
            "star": self._repeated,
            "tag": self._tag,
            "tags_with_separator": self._tags_with_separator,
            "triggered_tags": self._triggered_tags,
        }

    def source(self, given: dict[str, Any], path: str) -> str:
        return self._lark.source(self._format(given, path, None))

    def older_source(self, structures: list[dict[str, Any]], triggers: list[str], path: str) -> str:
        tags = []
        for number, given in enumerate(structures):
            where = f"{path}structures[{number}]"
            structure = self._reader.read(given, Structure, {}, f"{where}.")
            schema = decoded({} if structure.schema is None else structure.schema, f"{where}.schema", "a JSON schema")
            tags.append((structure.begin, self._json(schema, f"{where}.schema", [structure.end]), where))
        return self._lark.source(self._triggered(TriggeredTags(triggers=triggers, tags=[]), tags, path, "structures"))

    def _format(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        """An expression for a format, and what follows it: one of `ends`.

        None: nothing follows. An empty list: the next format does, which no text ends.
        """
        kind = given.get("type")
        if not isinstance(kind, str) or kind not in self._formats:
            known = ", ".join(sorted(self._formats))
            shown = str(kind)[:64]
            message = f"{path}.type is {shown!r}, which is not supported; it must be one of {known}."
            raise invalid(f"{path}.type", message, code="unsupported_parameter")
        return self._formats[kind](given, path, ends)

    # ---- what needs no end ---------------------------------------------------------------------------------------

    def _const_string(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        value = self._reader.read(given, ConstString, {}, f"{path}.").value
        return f"{self._spelled(value)} {self._one_of(ends)}"

    def _json_schema(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        asked = self._reader.read(given, JsonSchema, NEUTRAL, f"{path}.")
        if asked.json_schema is False:
            message = f"{path}.json_schema is false, which allows no output; leave the format out."
            raise invalid(f"{path}.json_schema", message)
        return self._json({} if asked.json_schema is True else asked.json_schema, f"{path}.json_schema", ends)

    def _json(self, schema: dict[str, Any], param: str, ends: _Ends | None) -> str:
        if "x-guidance" in schema:
            message = f"{param} has 'x-guidance', which is not supported; leave it out."
            raise invalid(param, message, code="invalid_grammar")
        return f"{self._lark.json(with_any_of(schema), lenient=False)} {self._one_of(ends)}"

    def _regex(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        """One expression with the texts behind it: an expression alone would take them for a part of itself."""
        pattern = self._reader.read(given, Regex, NEUTRAL, f"{path}.").pattern
        if not pattern or closes_too_much(pattern):
            reason = "closes a parenthesis that is not open" if pattern else "is empty"
            raise invalid(f"{path}.pattern", f"{path}.pattern {reason}; correct it.", code="invalid_grammar")
        spelled = [self._tokens.split(end) for end in ends or ()]
        texts = [parts[0] if parts else "" for parts in spelled if len(parts) < 2]
        if ends and len(texts) == len(ends) and all(isinstance(text, str) for text in texts):
            return f"/(?:{in_slashes(pattern)})(?:{one_of(map(str, texts))})/"
        return f"/{in_slashes(pattern)}/ {self._one_of(ends)}"

    def _repeated(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        asked = self._reader.read(given, Repeated, {}, f"{path}.")
        sign = {"optional": "?", "star": "*", "plus": "+"}[asked.type]
        return f"({self._format(asked.content, f'{path}.content', [])}){sign} {self._one_of(ends)}"

    def _repeat(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        asked = self._reader.read(given, Repeat, {}, f"{path}.")
        most = "" if asked.max == -1 else str(asked.max)
        if not 0 <= asked.min <= _MOST_REPEATS or not (asked.max == -1 or asked.min <= asked.max <= _MOST_REPEATS):
            message = f"{path}.min and max must be from 0 to {_MOST_REPEATS}, the first not larger; max may be -1."
            raise invalid(f"{path}.min", message)
        content = self._format(asked.content, f"{path}.content", [])
        return f"({content}){{{asked.min},{most}}} {self._one_of(ends)}"

    # ---- what is made of others ----------------------------------------------------------------------------------

    def _sequence(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        elements = self._elements(given, path)
        last = len(elements) - 1
        return " ".join(
            self._format(element, f"{path}.elements[{number}]", ends if number == last else [])
            for number, element in enumerate(elements)
        )

    def _or(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        elements = self._elements(given, path)
        return either(
            [self._format(element, f"{path}.elements[{number}]", ends) for number, element in enumerate(elements)]
        )

    def _elements(self, given: dict[str, Any], path: str) -> list[dict[str, Any]]:
        elements = self._reader.read(given, Several, {}, f"{path}.").elements
        if not elements:
            raise invalid(f"{path}.elements", f"{path}.elements is empty; it must hold a format.")
        return elements

    def _tag(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        begin, rest = self._read_tag(given, path)
        return f"{self._spelled(begin)} {rest} {self._one_of(ends)}"

    def _read_tag(self, given: dict[str, Any], path: str) -> tuple[str, str]:
        """What a tag begins with, and an expression for the rest of it."""
        for name in ("begin", "end"):
            if isinstance(given.get(name), dict):
                message = f"{path}.{name} is a token, which is not supported; write its name as a string."
                raise invalid(f"{path}.{name}", message, code="unsupported_parameter")
        tag = self._reader.read(given, Tag, {}, f"{path}.")
        if tag.type != "tag":
            raise invalid(f"{path}.type", f"{path}.type must be 'tag', not {tag.type[:64]!r}.")
        ends = [tag.end] if isinstance(tag.end, str) else tag.end
        if not ends:
            raise invalid(f"{path}.end", f"{path}.end is empty; it must hold a text.")
        return tag.begin, self._lark.rule(self._format(tag.content, f"{path}.content", ends))

    def _tags_with_separator(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        asked = self._reader.read(given, TagsWithSeparator, {}, f"{path}.")
        tags = [self._tag(tag, f"{path}.tags[{number}]", []) for number, tag in enumerate(asked.tags)]
        if not tags:
            raise invalid(f"{path}.tags", f"{path}.tags is empty; it must hold a tag.")
        one = self._lark.rule(either(tags))
        several = one if asked.stop_after_first else f"{one} ({self._spelled(asked.separator)} {one})*"
        return f"({several}){'' if asked.at_least_one else '?'} {self._one_of(ends)}"

    # ---- free text -----------------------------------------------------------------------------------------------

    def _any_text(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        self._reader.read(given, AnyText, NEUTRAL, f"{path}.")
        return self._free_text(path, ends)

    def _triggered_tags(self, given: dict[str, Any], path: str, ends: _Ends | None) -> str:
        asked = self._reader.read(given, TriggeredTags, NEUTRAL, f"{path}.")
        tags = []
        for number, tag in enumerate(asked.tags):
            where = f"{path}.tags[{number}]"
            tags.append((*self._read_tag(tag, where), where))
        return self._triggered(asked, tags, f"{path}.", "tags", ends)

    def _triggered(
        self,
        asked: TriggeredTags,
        tags: Sequence[tuple[str, str, str]],
        path: str,
        name: str,
        ends: _Ends | None = None,
    ) -> str:
        """Free text with tags in it, each of which a trigger begins; `tags`: begin, rest, and where it stands."""
        if not tags:
            raise invalid(f"{path}{name}", f"{path}{name} is empty; it must hold a tag.")
        by_trigger: dict[str, list[str]] = {}
        for begin, rest, where in tags:
            fitting = [trigger for trigger in asked.triggers if trigger and begin.startswith(trigger)]
            if len(fitting) != 1:
                number = "none" if not fitting else "several"
                message = f"{where}.begin is {begin[:64]!r}, and {number} of {path}triggers begin it; one must."
                raise invalid(f"{where}.begin", message)
            end = self._tokens.end_of(begin, len(fitting[0]))  # a trigger may be a part of a token's name
            by_trigger.setdefault(begin[:end], []).append(f"{self._spelled(begin[end:])} {rest}")
        begun = either([f"{self._spelled(begin)} {rest}" for begin, rest, _ in tags])
        in_text = self._lark.rule(
            either([f"{self._up_to(trigger)} {either(ways)}" for trigger, ways in by_trigger.items()])
        )
        free = self._free_text(path.rstrip("."), ends)
        if asked.stop_after_first:
            first = begun if asked.at_least_one else in_text
            return either([f"{first} {self._one_of(ends)}", *([] if asked.at_least_one else [free])])
        return f"{begun if asked.at_least_one else ''} {in_text}* {free}"

    def _free_text(self, path: str, ends: _Ends | None) -> str:
        """Free text up to its end, with it."""
        if ends is None:
            return TEXT
        if not ends or "" in ends:
            remedy = "let it be last in a tag that has an end, or last of all"
            raise invalid(path, f"{path} has free text, which nothing ends here; {remedy}.", code="invalid_grammar")
        return either([self._up_to(end) for end in ends])

    def _up_to(self, text: str) -> str:
        """Free text up to a text, with it. No free text has a token of the model."""
        first, *others = self._tokens.split(text)
        begin = f"{TEXT} {_part(first)}"
        if isinstance(first, str):
            begin = self._lark.rule(begin, "[lazy]")
        return " ".join([begin, *map(_part, others)])

    def _spelled(self, text: str) -> str:
        """A text as the model writes it."""
        return " ".join(map(_part, self._tokens.split(text))) or '""'

    def _one_of(self, texts: _Ends | None) -> str:
        return either(map(self._spelled, texts)) if texts else ""


def _part(part: str | int) -> str:
    return literal(part) if isinstance(part, str) else f"<[{part}]>"
