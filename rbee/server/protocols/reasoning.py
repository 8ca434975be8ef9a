"""What a request sets of the variables of the model's chat template: the switches of its reasoning, and any others.

Owns which variable a switch becomes, and which are listed as not followed. Knows one field of the protocols, which all
of them call alike: `chat_template_kwargs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee.server.protocols.tools import check_depth

if TYPE_CHECKING:
    from rbee.server.text.chat_template import ChatTemplate

_EFFORT = "reasoning_effort"


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
