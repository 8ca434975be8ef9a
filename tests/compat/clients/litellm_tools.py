"""LiteLLM: tool calls, structured output and reasoning of its completion function, over both protocols."""

from __future__ import annotations

import json
import os
from typing import Any, Literal

# Before its import, which asks the internet for a list of prices unless this is set.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from pydantic import BaseModel

from tests.compat.clients.observing import Observations, Question, calls_of, main, tokens, user


class Product(BaseModel):
    """What the object prompt asks for."""

    product: str
    grams: int


class Weather(BaseModel):
    """There is one valid one."""

    city: Literal["Paris"]
    unit: Literal["C"]


def _ended(answer: Any) -> dict[str, Any]:
    used = tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return {"end": answer.choices[0].finish_reason, "tokens": used}


def _calls(answer: Any) -> dict[str, Any]:
    calls = answer.choices[0].message.tool_calls
    return {
        "calls": calls_of((call.id, call.function.name, call.function.arguments) for call in calls),
        **_ended(answer),
    }


def _whole(request: dict[str, Any]) -> Any:
    """The answer of a stream, by LiteLLM's own accumulator."""
    chunks = list(litellm.completion(**request, stream=True, stream_options={"include_usage": True}))
    return litellm.stream_chunk_builder(chunks, messages=request["messages"])


def _run(ask: Question, seen: Observations) -> None:
    settings: dict[str, Any] = {"api_key": ask.key, "temperature": 0, "num_retries": 0}
    for protocol, path in (("openai", "/v1"), ("anthropic", "")):
        common = {**settings, "model": f"{protocol}/{ask.model}", "max_tokens": ask.tool_tokens}
        here = {**common, "api_base": ask.url + path}
        called: dict[str, Any] = {
            **here,
            "messages": user(ask.tool_prompt),
            "tools": [{"type": "function", "function": ask.tool}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        }
        first = litellm.completion(**called)
        seen.add("call", f"completion, {protocol}/, `tools`", **_calls(first))
        seen.add("call", f"completion, {protocol}/, `stream`, `tools`", **_calls(_whole(called)))
        many = {**called, "tools": [{"type": "function", "function": ask.free_tool}], "parallel_tool_calls": True}
        seen.add("calls", f"completion, {protocol}/, `stream`, two calls", **_calls(_whole(many)))

        message = first.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": ask.tool_result}
        history = [*user(ask.tool_prompt), message, result]
        answer = litellm.completion(**here, messages=history, tools=called["tools"], tool_choice="none")
        text = answer.choices[0].message.content
        seen.add("result", f"completion, {protocol}/, a tool's result", text=text, **_ended(answer))

        for call, make in (("", litellm.completion), ("`stream`, ", lambda **request: _whole(request))):
            if protocol == "openai":
                given = make(**here, messages=user(ask.object_prompt), response_format=Product)
                value = json.loads(given.choices[0].message.content)
                seen.add("object", f"completion, {protocol}/, {call}`response_format`", value=value, **_ended(given))
            else:  # it makes a tool of it, which it shows to a model that it does not know
                given = make(**here, messages=user(ask.object_prompt), response_format=Weather)
                value = json.loads(given.choices[0].message.content)
                name = f"completion, {protocol}/, {call}`response_format` as a tool"
                seen.add("call", name, calls=[[ask.tool["name"], value]])

            thinking = {**common, "api_base": ask.thinker + path, "max_tokens": ask.dialogue_tokens}
            thought = make(**thinking, messages=ask.dialogue)
            facts = {"reasoning": thought.choices[0].message.reasoning_content, **_ended(thought)}
            text = thought.choices[0].message.content
            seen.add("reasoning", f"completion, {protocol}/, {call}reasoning", **facts, text=text)


if __name__ == "__main__":
    main(_run, package="litellm")
