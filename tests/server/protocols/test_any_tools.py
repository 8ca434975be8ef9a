"""Tools, choices, calls and results of any form: each request is taken, or refused by the place that is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from tests.server.protocols.parameters_parts import JSON
from tests.server.protocols.tools_parts import OK, choice_of, conversation, read, tool_of

if TYPE_CHECKING:
    from rbee.server.streams.generation import Generation

PROTOCOLS = ["chat", "responses", "messages"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that a value holds."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in members:
            found += places(member, (*path, key))
    return found


@st.composite
def spoiled(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """A request in which some places hold something else, or nothing."""
    request: dict[str, Any] = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        *outer, key = draw(st.sampled_from(places(request)))
        target: Any = request
        for step in outer:
            target = target[step]
        if isinstance(target, dict) and draw(st.booleans()):
            del target[key]
            target |= draw(st.dictionaries(st.text(max_size=5), JSON, max_size=1))
        else:
            target[key] = draw(JSON | st.sampled_from(["tool_use", "tool_result", "function_call", "tool", "required"]))
        if not places(request):
            break
    return request


def outcome(protocol: str, messages: Any, fields: dict[str, Any]) -> Generation | Refusal:
    """What comes of a request."""
    try:
        return read(protocol, messages, **fields)[0]
    except Refusal as refusal:
        return refusal


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(data=st.data())
def test_any_tools_are_taken_or_refused(protocol: str, data: st.DataObject) -> None:
    """A refusal is a 400 with a short sentence and a place; nothing else goes wrong."""
    whole = {
        "messages": conversation(protocol),
        "tools": [tool_of(protocol, "weather", description="It.", strict=True), tool_of(protocol, "time", OK)],
        "tool_choice": choice_of(protocol, "time"),
    }
    fields = data.draw(spoiled(whole))
    messages = fields.pop("messages", [])
    result = outcome(protocol, messages, fields)
    if isinstance(result, Refusal):
        assert status_of(result) == 400
        assert result.param is not None
        assert len(result.message) < 500
    else:
        assert result.prompt
        assert all(tool in result.tool_use.offered for tool in result.tool_use.tools)
