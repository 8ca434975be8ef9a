"""/tokenize counts what a chat with the same fields sends to the engine, and /apply-template shows it."""

from __future__ import annotations

import dataclasses
import json

import httpx
import pytest

from rbee.server.text.chat_template import ChatTemplate
from tests.fakes import RecordingEngine
from tests.raw_client import CHAT
from tests.server.protocols.parameters_parts import MODEL, ready
from tests.server.server_parts import serving

pytestmark = pytest.mark.anyio

HI, HEY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}
SOURCE = "{{ mood }}{% for message in messages %}<{{ message.content }}>{% endfor %}{{ ':' * add_generation_prompt }}"


async def answers(*requests):
    """Of an engine that keeps what it is sent, which comes too; each request is a path and a body."""
    engine = RecordingEngine(ready(), token_id=ord("!"))
    model = dataclasses.replace(MODEL, chat_template=ChatTemplate(SOURCE, {}))
    async with serving(engine, model) as url, httpx.AsyncClient(base_url=url) as client:
        return [await client.post(path, json=body) for path, body in requests], engine


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<hi><hey>:"),
        ({"add_generation_prompt": False}, "<hi><hey>"),
        ({"continue_final_message": True}, "<hi><hey"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "<hi><hey"),
        ({"chat_template_kwargs": {"mood": "glad"}}, "glad<hi><hey>:"),
    ],
)
async def test_a_conversation_is_tokenized_as_a_chat_has_it(fields, prompt):
    """With what says how it ends, and with the variables of its template."""
    body = {"messages": [HI, HEY]} | fields
    [counted, answered], engine = await answers(("/tokenize", body), (CHAT, body | {"max_tokens": 1}))
    assert answered.status_code == 200, answered.text
    [submitted] = engine.submitted
    assert counted.json()["tokens"] == [*memoryview(submitted.prompt).cast("I")] == [*prompt.encode()]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [HEY], "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": [HEY, HI], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [], "continue_final_message": True}, "continue_final_message"),
        ({"messages": [HI], "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"messages": [HI], "chat_template_kwargs": {"x": json.loads("[" * 600 + "]" * 600)}}, "chat_template_kwargs"),
        ({"prompt": "hi", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"prompt": "hi", "continue_final_message": True}, "continue_final_message"),
        ({"prompt": "hi", "chat_template_kwargs": {"mood": "glad"}}, "chat_template_kwargs"),
    ],
)
async def test_what_a_chat_refuses_is_refused(body, param):
    """So is what a prompt cannot have."""
    [refused], _ = await answers(("/tokenize", body))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, "<hi><hey>:"),
        ({"add_generation_prompt": False, "max_tokens": -1, "temperature": 0.5, "stream": True}, "<hi><hey>"),
        ({"continue_final_message": True}, "<hi><hey"),
        ({"chat_template_kwargs": {"mood": "glad"}, "n_predict": 5}, "glad<hi><hey>:"),
    ],
)
async def test_the_prompt_of_a_chat_as_text(fields, prompt):
    """The body of a chat request is taken as it is, and nothing is generated."""
    body = {"messages": [HI, HEY]} | fields
    [applied], engine = await answers(("/apply-template", body))
    assert applied.json() == {"prompt": prompt}
    assert engine.submitted == []


async def test_reasoning_and_tools_in_the_prompt():
    """Switches that the template knows, and tools that it shows; none where none may be called."""
    source = (
        "{{ 'on' if enable_thinking else 'off' }}{{ tools | map(attribute='function.name') | list if tools else '' }}"
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    model = dataclasses.replace(MODEL, chat_template=ChatTemplate(source, {}))
    asked = {"messages": [HI], "tools": tools, "reasoning": {"enabled": True}}
    async with serving(RecordingEngine(ready(), token_id=0), model) as url, httpx.AsyncClient(base_url=url) as client:
        shown = (await client.post("/apply-template", json=asked)).json()["prompt"]
        without = (await client.post("/apply-template", json=asked | {"tool_choice": "none"})).json()["prompt"]
    assert (shown, without) == ("on['f']", "on")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [HI], "model": "other"}, "model"),
        ({"messages": [HI], "prompt": "x"}, "prompt"),
        ({"messages": [HI], "n_predict": -2}, "n_predict"),
        ({"messages": [{"role": "user", "content": "x" * 300_000}]}, "messages"),
    ],
)
async def test_what_is_no_chat_has_no_prompt(body, param):
    """Refused as a chat is, and one that is longer than what is counted."""
    [refused], _ = await answers(("/apply-template", body))
    assert refused.status_code == (404 if param == "model" else 400)
    assert refused.json()["error"]["param"] == param
