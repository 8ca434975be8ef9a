"""What a chat asks of the model's reasoning: fields of its own, and OpenRouter's object `reasoning`.

Owns which of them mean the same. Does not know templates, or how an answer shows the reasoning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from rbee.server.errors import invalid
from rbee.server.protocols.reasoning import Sent

if TYPE_CHECKING:
    from rbee.server.protocols.fields import FieldReader
    from rbee.server.protocols.openai.schemas import ChatRequest

_T = TypeVar("_T")
_PATH = "reasoning."


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """OpenRouter's object."""

    effort: str | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    max_tokens: int | None = None


class ReasoningOptions(NamedTuple):
    """What is asked for; None: nothing."""

    enable: Sent[bool]  # whether the model reasons
    effort: Sent[str]
    include: Sent[bool]  # whether the answer shows it
    budget: Sent[int]  # tokens that it may have
    implied: bool = False  # it reasons, unless `enable` has a value


def read_reasoning(request: ChatRequest, reader: FieldReader) -> ReasoningOptions:
    """The options of a chat.

    Raises:
        Refusal: two fields that mean the same differ.
    """
    own = Reasoning()
    if request.reasoning is not None:
        own = reader.read(request.reasoning, Reasoning, {}, _PATH)
    include = None if own.exclude is None else not own.exclude
    return ReasoningOptions(
        enable=_same(Sent(request.enable_thinking, "enable_thinking"), Sent(own.enabled, f"{_PATH}enabled")),
        effort=_same(Sent(request.reasoning_effort, "reasoning_effort"), Sent(own.effort, f"{_PATH}effort")),
        include=_same(Sent(request.include_reasoning, "include_reasoning"), Sent(include, f"{_PATH}exclude")),
        budget=_same(
            Sent(request.thinking_token_budget, "thinking_token_budget"), Sent(own.max_tokens, f"{_PATH}max_tokens")
        ),
        implied=own.effort not in (None, "none") or bool(own.max_tokens),
    )


def _same(first: Sent[_T], second: Sent[_T]) -> Sent[_T]:
    """The one that was sent."""
    if first.value is None or second.value is None:
        return second if first.value is None and second.value is not None else first
    if first.value != second.value:
        raise invalid(second.field, f"{first.field} and {second.field} say different things; send one of them.")
    return first
