"""The tool calls, objects and reasoning that every client of `make compat` should see: those of plain HTTP requests.

Owns these kinds of observations, in the words of the three protocols. Does not know the clients.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.compat.clients.observing import tokens
from tests.compat.questions import (
    ANY_CALL,
    DIALOGUE,
    DIALOGUE_TOKENS,
    OBJECT_PROMPT,
    ONE_CALL,
    SCHEMA,
    TOOL_DESCRIPTION,
    TOOL_NAME,
    TOOL_PROMPT,
    TOOL_RESULT,
    TOOL_TOKENS,
)

if TYPE_CHECKING:
    import httpx

    from tests.compat.expected import Facts

THE_CALL = [TOOL_NAME, {"city": "Paris", "unit": "C"}]
_NAMED = {"name": TOOL_NAME, "description": TOOL_DESCRIPTION}
_ASKED = [{"role": "user", "content": TOOL_PROMPT}]
_OBJECT_ASKED = [{"role": "user", "content": OBJECT_PROMPT}]


def facts_of_tools(client: httpx.Client, thinker: httpx.Client, model: str) -> dict[str, Facts]:
    """By kind.

    Args:
        client: of the server that all clients talk to.
        thinker: of one that reads reasoning.
        model: the name that both serve.
    """

    def ask(path: str, at: httpx.Client = client, **fields: Any) -> Any:
        return at.post(path, json={"model": model, "temperature": 0, **fields}).raise_for_status().json()

    facts = {**_of_chats(ask, thinker), **_of_responses(ask, thinker), **_of_messages(ask, thinker)}
    for kind in ("", "response ", "message "):
        [call] = facts[f"{kind}call"]["calls"]
        assert call == THE_CALL, call
        assert len(facts[f"{kind}calls"]["calls"]) > 1, "there is nothing to count"
        assert facts[f"{kind}reasoning"]["reasoning"], "the model did not think"
        assert set(facts[f"{kind}object"]["value"]) == set(SCHEMA["properties"])
        for protocol in ("call", "calls", "object", "result", "reasoning"):
            # What each protocol says is the same; only the words for the end are its own.
            mine, chats = facts[f"{kind}{protocol}"], facts[protocol]
            assert {**mine, "end": ""} == {**chats, "end": ""}, (mine, chats)
    return facts


def _of_chats(ask: Any, thinker: httpx.Client) -> dict[str, Facts]:
    def facts(end: str, **fields: Any) -> tuple[Any, Facts]:
        answer = ask("/v1/chat/completions", **{"max_tokens": TOOL_TOKENS, **fields})
        [choice] = answer["choices"]
        assert choice["finish_reason"] == end, answer
        used = tokens(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
        return choice["message"], {"end": end, "tokens": used}

    def called(parameters: dict[str, Any], *, many: bool) -> Facts:
        tools = [{"type": "function", "function": {**_NAMED, "parameters": parameters}}]
        fields = {"messages": _ASKED, "tools": tools, "tool_choice": "required", "parallel_tool_calls": many}
        message, more = facts("tool_calls", **fields)
        functions = [call["function"] for call in message["tool_calls"]]
        return {"calls": [[each["name"], json.loads(each["arguments"])] for each in functions], **more}

    name, arguments = THE_CALL
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    result, more = facts(
        "stop",
        messages=[
            *_ASKED,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": TOOL_RESULT},
        ],
    )
    schema = {"type": "json_schema", "json_schema": {"name": "Product", "schema": SCHEMA}}
    value, more_of_value = facts("stop", messages=_OBJECT_ASKED, response_format=schema)
    thought, more_of_thought = facts("stop", messages=DIALOGUE, max_tokens=DIALOGUE_TOKENS, at=thinker)
    return {
        "call": called(ONE_CALL, many=False),
        "calls": called(ANY_CALL, many=True),
        "result": {"text": result["content"], **more},
        "object": {"value": json.loads(value["content"]), **more_of_value},
        "reasoning": {"reasoning": thought["reasoning_content"], "text": thought["content"], **more_of_thought},
    }


def _of_responses(ask: Any, thinker: httpx.Client) -> dict[str, Facts]:
    def facts(**fields: Any) -> tuple[Any, Facts]:
        answer = ask("/v1/responses", **{"max_output_tokens": TOOL_TOKENS, **fields})
        assert answer["status"] == "completed", answer
        used = tokens(answer["usage"]["input_tokens"], answer["usage"]["output_tokens"])
        return answer["output"], {"end": "completed", "tokens": used}

    def called(parameters: dict[str, Any], *, many: bool) -> Facts:
        tools = [{"type": "function", **_NAMED, "parameters": parameters}]
        items, more = facts(input=_ASKED, tools=tools, tool_choice="required", parallel_tool_calls=many)
        return {"calls": [[item["name"], json.loads(item["arguments"])] for item in items], **more}

    name, arguments = THE_CALL
    [result], more = facts(
        input=[
            *_ASKED,
            {"type": "function_call", "call_id": "call_1", "name": name, "arguments": json.dumps(arguments)},
            {"type": "function_call_output", "call_id": "call_1", "output": TOOL_RESULT},
        ]
    )
    form = {"format": {"type": "json_schema", "name": "Product", "schema": SCHEMA}}
    [value], more_of_value = facts(input=_OBJECT_ASKED, text=form)
    (thought, answer), more_of_thought = facts(input=DIALOGUE, max_output_tokens=DIALOGUE_TOKENS, at=thinker)
    return {
        "response call": called(ONE_CALL, many=False),
        "response calls": called(ANY_CALL, many=True),
        "response result": {"text": result["content"][0]["text"], **more},
        "response object": {"value": json.loads(value["content"][0]["text"]), **more_of_value},
        "response reasoning": {
            "reasoning": thought["content"][0]["text"],
            "text": answer["content"][0]["text"],
            **more_of_thought,
        },
    }


def _of_messages(ask: Any, thinker: httpx.Client) -> dict[str, Facts]:
    def facts(end: str, **fields: Any) -> tuple[Any, Facts]:
        answer = ask("/v1/messages", **{"max_tokens": TOOL_TOKENS, **fields})
        assert answer["stop_reason"] == end, answer
        usage = answer["usage"]
        used = tokens(usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"])
        return answer["content"], {"end": end, "tokens": used}

    def called(parameters: dict[str, Any], *, many: bool) -> Facts:
        choice = {"type": "any", "disable_parallel_tool_use": not many}
        tools = [{**_NAMED, "input_schema": parameters}]
        blocks, more = facts("tool_use", messages=_ASKED, tools=tools, tool_choice=choice)
        return {"calls": [[block["name"], block["input"]] for block in blocks], **more}

    name, arguments = THE_CALL
    [result], more = facts(
        "end_turn",
        messages=[
            *_ASKED,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": name, "input": arguments}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": TOOL_RESULT}]},
        ],
    )
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    [value], more_of_value = facts("end_turn", messages=_OBJECT_ASKED, output_config=form)
    (thought, answer), more_of_thought = facts("end_turn", messages=DIALOGUE, max_tokens=DIALOGUE_TOKENS, at=thinker)
    return {
        "message call": called(ONE_CALL, many=False),
        "message calls": called(ANY_CALL, many=True),
        "message result": {"text": result["text"], **more},
        "message object": {"value": json.loads(value["text"]), **more_of_value},
        "message reasoning": {"reasoning": thought["thinking"], "text": answer["text"], **more_of_thought},
    }
