"""The switches of a model's reasoning, as variables of its chat template.

Owns which variable a switch becomes, and which are listed as not followed. Does not know the fields of a protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbee.server.text.chat_template import ChatTemplate

_EFFORT = "reasoning_effort"


def reasoning_variables(
    template: ChatTemplate | None,
    ignored: list[str],
    *,
    enable: bool | None = None,
    effort: str | None = None,
    enable_field: str = "enable_thinking",
    effort_field: str = _EFFORT,
) -> dict[str, Any]:
    """What the template gets; the names of fields that it does not know are added to `ignored`.

    An effort of "none" turns reasoning off where the template knows no efforts.
    """
    variables: dict[str, Any] = {}
    switch = template.thinking_switch if template else None
    if enable is not None:
        if switch:
            variables[switch] = enable
        else:
            ignored.append(enable_field)
    if effort is not None:
        if template is not None and template.knows(_EFFORT):
            variables[_EFFORT] = effort
        elif switch and effort == "none":
            variables.setdefault(switch, False)
        else:
            ignored.append(effort_field)
    return variables
