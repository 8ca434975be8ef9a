"""What a request says of the model's reasoning, and the further variables that it sets of its chat template.

Owns which variable a switch becomes, which budget of tokens can be kept, and which fields are listed as not followed.
Knows one field of the protocols, which all of them call alike: `chat_template_kwargs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from rbee.sampling_params import ReasoningBudget
from rbee.server.errors import invalid
from rbee.server.protocols.parameters import MOST_TOKENS
from rbee.server.protocols.tools import check_depth

if TYPE_CHECKING:
    from rbee.server.text.chat_template import ChatTemplate
    from rbee.server.text.output import OutputFormat

_T = TypeVar("_T")
_EFFORT = "reasoning_effort"
_UNLIMITED = -1  # as a budget


class Sent(NamedTuple, Generic[_T]):
    """A value, and the field that the client has sent it in."""

    value: _T | None
    field: str


def given_variables(chat_template_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Those that the request names itself, which come before the switches."""
    given = chat_template_kwargs or {}
    check_depth(given, "chat_template_kwargs")
    return given


def reasoning_variables(
    template: ChatTemplate | None,
    ignored: list[str],
    *,
    enable: bool | None = None,
    implied: bool = False,
    effort: str | None = None,
    enable_field: str = "enable_thinking",
    effort_field: str = _EFFORT,
) -> dict[str, Any]:
    """What the template gets; the names of fields that it does not know are added to `ignored`.

    An effort of "none" turns reasoning off where the template knows no efforts. With `implied` the request asks for
    reasoning and does not name the switch.
    """
    variables: dict[str, Any] = {}
    switch = template.thinking_switch if template else None
    if enable is not None:
        if switch:
            variables[switch] = enable
        else:
            ignored.append(enable_field)
    elif implied and switch:
        variables[switch] = True
    if effort is not None:
        if template is not None and template.knows(_EFFORT):
            variables[_EFFORT] = effort
        elif switch and effort == "none":
            variables.setdefault(switch, False)
        else:
            ignored.append(effort_field)
    return variables


def reasoning_budget(
    asked: Sent[int], output_format: OutputFormat, ignored: list[str], *, is_open: bool
) -> ReasoningBudget | None:
    """How many tokens of an output may be reasoning; None: no limit.

    Args:
        asked: the number; -1 is no limit.
        output_format: of the model. Reasoning that does not end with one token cannot be ended: then the field is
            added to `ignored`.
        ignored: names of fields that are not followed.
        is_open: the prompt ends inside of the reasoning.

    Raises:
        Refusal: there is no such number of tokens.
    """
    if asked.value is None or asked.value == _UNLIMITED:
        return None
    if not 0 <= asked.value <= MOST_TOKENS:
        shown = str(asked.value)[:40]
        raise invalid(asked.field, f"{asked.field} must be from 0 to {MOST_TOKENS}, or -1 for no limit, not {shown}.")
    tags = output_format.reasoning_tags
    if tags is None or not (is_open or tags.begin_ids):
        ignored.append(asked.field)
        return None
    return ReasoningBudget(tokens=asked.value, end_id=tags.end_id, begin_ids=tags.begin_ids, is_open=is_open)
