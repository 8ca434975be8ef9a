"""`chat_template_kwargs` in the three chat protocols, which have the field from vLLM."""

import json
from typing import Any

import pytest

from rbee.server.errors import Refusal
from rbee.server.protocols.anthropic.reader import MessagesReader
from tests.server.protocols.dialects_parts import HI
from tests.server.protocols.parameters_parts import ready
from tests.server.protocols.tools_parts import model_with, prompt_of

PROTOCOLS = ["chat", "messages", "responses"]
SOURCE = "{{ messages[0].content }} {{ mood }} {{ enable_thinking }}"
SWITCHED_ON: dict[str, dict[str, Any]] = {
    "chat": {"enable_thinking": True},
    "messages": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "responses": {"reasoning": {"effort": "none"}},  # the switch can only be turned off here
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_template_gets_them(protocol):
    """All of them, and before what the protocol's own switch says."""
    given = {"mood": "glad", "enable_thinking": "maybe"}
    prompt = prompt_of(protocol, HI, source=SOURCE, chat_template_kwargs=given, **SWITCHED_ON[protocol])
    assert prompt == "hi glad maybe"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("given", [{"messages": []}, {"x": json.loads("[" * 600 + "]" * 600)}], ids=["ours", "deep"])
def test_refused_by_name(protocol, given):
    """What would replace the conversation, and what is nested too deeply."""
    with pytest.raises(Refusal) as caught:
        prompt_of(protocol, HI, source=SOURCE, chat_template_kwargs=given)
    assert caught.value.param == "chat_template_kwargs"


def test_they_are_counted():
    """As the prompt will have them."""
    reader = MessagesReader(model_with(SOURCE), num_rings=64, ring_capacity=1024, lenient=False)
    body = {"messages": HI, "chat_template_kwargs": {"mood": "glad", "enable_thinking": 1}}
    assert reader.count(json.dumps(body).encode(), ready().max_model_len) == len("hi glad 1")
