"""OpenRouter's object `reasoning` of chats: what the chat template gets of it, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.server.errors import Refusal
from rbee.server.protocols.openai.reader import RequestReader
from tests.server.protocols.parameters_parts import HI, ready
from tests.server.protocols.tools_parts import model_with

SWITCH = "{{ messages[0].content }}{{ ' thinks' if thinking else '' }}"  # as of DeepSeek V3.1: off by default
EFFORTS = "{{ messages[0].content }} {{ reasoning_effort }}"  # as of gpt-oss
NEITHER = "{{ messages[0].content }}"


def read(source: str, **fields: Any) -> tuple[str, list[str]]:
    """The prompt of a chat, and the fields that are named as not followed."""
    reader = RequestReader(model_with(source), num_rings=64, ring_capacity=1024, lenient=False)
    asked = reader.read_chat(json.dumps(HI | fields).encode(), [], ready(), 0)
    headers = dict(asked.dialect.answer_headers)
    ignored = headers.get(b"warning", b'"ignored: "').decode().split("ignored: ")[1].rstrip('"')
    return bytes(asked.generation.prompt).decode(), ignored.split(", ") if ignored else []


@pytest.mark.parametrize(
    ("source", "reasoning", "prompt", "ignored"),
    [
        (SWITCH, {}, "hi", []),
        (SWITCH, {"enabled": True}, "hi thinks", []),
        (SWITCH, {"enabled": False}, "hi", []),
        (SWITCH, {"effort": "high"}, "hi thinks", ["reasoning.effort"]),
        (SWITCH, {"effort": "none"}, "hi", []),
        (SWITCH, {"effort": "high", "enabled": False}, "hi", ["reasoning.effort"]),
        (SWITCH, {"exclude": True}, "hi", []),
        (EFFORTS, {"effort": "low"}, "hi low", []),
        (EFFORTS, {"enabled": True}, "hi ", ["reasoning.enabled"]),
        (NEITHER, {"effort": "low", "enabled": True}, "hi", ["reasoning.enabled", "reasoning.effort"]),
    ],
)
def test_what_the_template_gets(source, reasoning, prompt, ignored):
    """Its switch and its effort; an effort alone turns the switch on. What it does not know is named."""
    assert read(source, reasoning=reasoning) == (prompt, ignored)


def test_both_names_may_be_sent():
    """Where they agree."""
    assert read(SWITCH, reasoning={"enabled": True}, enable_thinking=True) == ("hi thinks", [])
    assert read(EFFORTS, reasoning={"effort": "low"}, reasoning_effort="low") == ("hi low", [])
    assert read(SWITCH, reasoning={"effort": "high"}, enable_thinking=False) == ("hi", ["reasoning.effort"])
    assert read(SWITCH, reasoning={"enabled": True}, chat_template_kwargs={"thinking": False}) == ("hi", [])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"enabled": False}, "enable_thinking": True}, "reasoning.enabled"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort"),
        ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
        ({"reasoning": {"efort": "low"}}, "reasoning.efort"),
        ({"reasoning": "high"}, "reasoning"),
    ],
)
def test_what_cannot_be_followed_is_refused(fields, param):
    """Names that differ, a wrong type, and what the object does not have."""
    with pytest.raises(Refusal) as caught:
        read(SWITCH, **fields)
    assert caught.value.param == param
    assert param in caught.value.message
