"""Messages to one prompt text, by the model's own chat template.

Owns the jinja environment, which offers templates what transformers offers them; a template is foreign code, and runs
in jinja's immutable sandbox. Owns that a message's text stays text. Does not know where a template comes from or what
becomes of the text.
"""

from __future__ import annotations

import json
import secrets
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rbee.errors import ModelError
from rbee.server.errors import invalid
from rbee.server.text.special_tokens import SpecialTokens

_NONE = SpecialTokens()
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: in jinja's language.
        special_tokens: of the model, by the names that templates have for them (bos_token, eos_token ...).
        in_messages: the special tokens that messages cannot write.
    """

    def __init__(self, source: str, special_tokens: dict[str, str], in_messages: SpecialTokens = _NONE) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"The model's chat template does not compile: {error}. Correct the template.") from error
        self._special_tokens = special_tokens
        self._in_messages = in_messages
        self._source = source

    def knows(self, word: str) -> bool:
        """Whether the template mentions a role or a variable."""
        return word in self._source

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
        limit: int = sys.maxsize,
    ) -> list[str]:
        """The prompt of a conversation: a text, in pieces that must be tokenized one by one.

        It is cut inside of each special token that a message holds. Those that the template writes are whole.

        Args:
            messages: each with "role" and "content" (a string).
            add_generation_prompt: end with what opens the assistant's answer.
            continue_final_message: end right after the last message's content, so that the model continues it.
            variables: further template variables (`chat_template_kwargs`).
            limit: tokens that the prompt may have.

        Raises:
            TooManyTokensError: a message holds more special tokens than that.
            Refusal: the template refuses these messages (for example two in a row of one role), fails on them, or
                the variables would hide its own.
        """
        variables = variables or {}
        if reserved := sorted(_RESERVED & variables.keys()):
            raise invalid(
                "chat_template_kwargs", f"chat_template_kwargs may not set {reserved[0]!r}: it is the server's."
            )
        # Marks show where the text is cut, and where the last content ends, whatever the template puts after it.
        cut, end = secrets.token_hex(8), secrets.token_hex(8)
        given = [self._known_role(message) for message in messages]
        marked = [self._marked(message, cut, limit) for message in given]
        is_cut = marked != given
        if continue_final_message:
            marked[-1] = marked[-1] | {"content": marked[-1]["content"] + end}
        text = self._render(marked, add_generation_prompt and not continue_final_message, variables)
        if continue_final_message:
            text, found, _ = text.rpartition(end)
            if not found:
                raise invalid(
                    "continue_final_message", "The model's chat template does not show the last message's content."
                )
        return text.split(cut) if is_cut else [text]

    def _marked(self, message: dict[str, Any], mark: str, limit: int) -> dict[str, Any]:
        """The message with `mark` wherever a piece of it ends; itself if it is in one."""
        for name in ("content", "name"):
            pieces = self._in_messages.cut(message.get(name, ""), most=limit)
            if len(pieces) > 1:
                message = message | {name: mark.join(pieces)}
        return message

    def _known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self.knows("developer"):
            return message | {"role": "system"}  # OpenAI's newer word for the same thing
        return message

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool, variables: dict[str, Any]) -> str:  # noqa: FBT001 - private
        try:
            return self._template.render(
                self._special_tokens
                | variables
                | {
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except _RefusedError as refusal:
            raise invalid("messages", f"The model's chat template refuses these messages: {refusal}") from None
        except Exception as error:  # whatever foreign code does, it is this request that fails
            raise invalid(
                "messages",
                f"The model's chat template fails on these messages: {type(error).__name__}: {error}",
                code="chat_template_error",
            ) from error


class _RefusedError(jinja2.TemplateError):
    """A template called raise_exception()."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks text for training; here the block becomes its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(  # templates may pass these by position
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as transformers writes it in templates: no HTML escapes, unlike jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _RefusedError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - a template may pass it by this name
    return datetime.now().astimezone().strftime(format)
