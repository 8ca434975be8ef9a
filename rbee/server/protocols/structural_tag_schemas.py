"""The shapes of structural tags and their formats, as xgrammar describes them.

Owns names and types. What each means, `rbee.server.protocols.structural_tags` knows.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole structural tag."""

    type: str = "structural_tag"
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """A tag of the older form; without a schema its content is any JSON."""

    begin: str
    end: str
    schema: dict[str, Any] | str | None = None


class ConstString(msgspec.Struct, frozen=True, kw_only=True):
    """A text."""

    type: str
    value: str


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """JSON."""

    type: str
    json_schema: bool | dict[str, Any]


class Regex(msgspec.Struct, frozen=True, kw_only=True):
    """What matches a regular expression."""

    type: str
    pattern: str


class AnyText(msgspec.Struct, frozen=True, kw_only=True):
    """Free text."""

    type: str


class Several(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence, or alternatives."""

    type: str
    elements: list[dict[str, Any]]


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """optional, star and plus."""

    type: str
    content: dict[str, Any]


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """So many times the same."""

    type: str
    content: dict[str, Any]
    min: int
    max: int  # -1: any number


class Tag(msgspec.Struct, frozen=True, kw_only=True):
    """Something between two texts."""

    begin: str
    content: dict[str, Any]
    end: str | list[str]
    type: str = "tag"


class TriggeredTags(msgspec.Struct, frozen=True, kw_only=True):
    """Free text with tags in it, which begin with a trigger."""

    triggers: list[str]
    tags: list[dict[str, Any]]
    type: str = "triggered_tags"
    at_least_one: bool = False
    stop_after_first: bool = False


class TagsWithSeparator(msgspec.Struct, frozen=True, kw_only=True):
    """Tags, and nothing else but what is between them."""

    type: str
    tags: list[dict[str, Any]]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


# Fields that are known and not supported, each with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "any_order": (False,),
    "excludes": ([],),
    "max_chars": (),
    "max_tokens": (),
    "max_whitespace_cnt": (),
    "style": ("json",),
}
