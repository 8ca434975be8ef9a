"""Jinja as transformers sets it up for chat templates.

Owns what templates find there. A template is foreign code, and runs in jinja's immutable sandbox. Does not know what a
message is.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rbee.errors import ModelError


class TemplateRefusedError(jinja2.TemplateError):
    """A template called raise_exception()."""


class TemplateEngine:
    """A compiled template.

    Args:
        source: in jinja's language.
        constants: variables that each rendering has, unless it sets them itself.
    """

    def __init__(self, source: str, constants: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"The model's chat template does not compile: {error}. Correct the template.") from error
        self._constants = constants

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Raises TemplateRefusedError, or whatever foreign code raises."""
        return self._template.render({**self._constants, **variables})


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks text for training; here the block becomes its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(  # templates may pass these by position
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as transformers writes it in templates: no HTML escapes, unlike jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusedError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - a template may pass it by this name
    return datetime.now().astimezone().strftime(format)
