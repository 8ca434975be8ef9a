"""Messages and tools to one prompt text, by the model's own chat template.

Owns the steps from a conversation to that text, and that what clients write in it stays text. Does not know where a
template comes from or what becomes of the text.
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any

from rbee.server.errors import invalid
from rbee.server.text.special_tokens import SpecialTokens
from rbee.server.text.templates.abilities import Abilities, find_abilities
from rbee.server.text.templates.adapting import adapted_messages, adapted_tools
from rbee.server.text.templates.engine import TemplateEngine, TemplateRefusedError
from rbee.server.text.templates.generic_tools import with_generic_tools
from rbee.server.text.templates.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rbee.server.text.output.tools import Tool

_NONE = SpecialTokens()
_THINKING = "enable_thinking"
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """A compiled chat template, and what it can do.

    Args:
        source: in jinja's language.
        special_tokens: of the model, by the names that templates have for them (bos_token, eos_token ...).
        in_messages: the special tokens that messages cannot write.
        with_tools: the source of another template that the model has for conversations with tools.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        in_messages: SpecialTokens = _NONE,
        *,
        with_tools: str | None = None,
    ) -> None:
        self._engine = TemplateEngine(source, special_tokens)
        self._in_messages = in_messages
        self.source = source
        self.abilities: Abilities = find_abilities(self._engine.render, special_tokens.get("eos_token", ""))
        self._with_tools = self if with_tools is None else ChatTemplate(with_tools, special_tokens, in_messages)

    def for_tools(self, *, offered: bool) -> ChatTemplate:
        """The template of conversations in which tools are offered, or none."""
        return self._with_tools if offered else self

    @property
    def thinking_switch(self) -> str | None:
        """The variable that turns reasoning on and off; None if there is none."""
        known = self.abilities.thinking_switch
        return _THINKING if known is None and self.knows(_THINKING) else known

    def knows(self, word: str) -> bool:
        """Whether the template mentions a role or a variable."""
        return word in self.source

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
        limit: int = sys.maxsize,
    ) -> list[str]:
        """The prompt of a conversation: a text, in pieces that must be tokenized one by one.

        It is cut inside of each special token that a client wrote: in a message, a tool, a call, a variable. Those that
        the template writes are whole.

        Args:
            messages: each with "role" and "content" (a string). An assistant's may have "tool_calls" (a list of
                ToolCall), and its content be None then; and "reasoning". A tool's has "tool_call_id" and "name".
            tools: those that are offered.
            add_generation_prompt: end with what opens the assistant's answer.
            continue_final_message: end right after the last message's content, so that the model continues it.
            variables: further template variables (`chat_template_kwargs`).
            limit: tokens that the prompt may have.

        Raises:
            TooManyTokensError: there are more special tokens than that.
            Refusal: the template refuses these messages (for example two in a row of one role), fails on them, or
                the variables would hide its own.
        """
        variables = variables or {}
        if reserved := sorted(_RESERVED & variables.keys()):
            raise invalid(
                "chat_template_kwargs", f"chat_template_kwargs may not set {reserved[0]!r}: it is the server's."
            )
        marks = Marks(self._in_messages, limit)
        given = adapted_messages([self._known_role(message) for message in messages], self.abilities)
        marked = [marks.put_in_message(message) for message in given]
        marked_tools = marks.put(adapted_tools(tools, self.abilities))
        marked = with_generic_tools(marked, marked_tools, self.abilities, self.source)
        # Another mark shows where the last content ends, whatever the template puts after it.
        end = secrets.token_hex(8)
        if continue_final_message:
            marked[-1] = marked[-1] | {"content": (marked[-1]["content"] or "") + end}
        of_the_server = {
            "messages": marked,
            "tools": marked_tools or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        text = self._render(marks.put(variables) | of_the_server, marks)
        if continue_final_message:
            text, found, _ = text.rpartition(end)
            if not found:
                raise invalid(
                    "continue_final_message", "The model's chat template does not show the last message's content."
                )
        return marks.cut(text)

    def _known_role(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["role"] == "developer" and not self.knows("developer"):
            return message | {"role": "system"}  # OpenAI's newer word for the same thing
        return message

    def _render(self, variables: dict[str, Any], marks: Marks) -> str:
        try:
            return self._engine.render(variables)
        except TemplateRefusedError as refusal:
            reason = "".join(marks.cut(str(refusal)))
            raise invalid("messages", f"The model's chat template refuses these messages: {reason}") from None
        except Exception as error:  # whatever foreign code does, it is this request that fails
            reason = f"{type(error).__name__}: {''.join(marks.cut(str(error)))}"
            raise invalid(
                "messages",
                f"The model's chat template fails on these messages: {reason}",
                code="chat_template_error",
            ) from error
