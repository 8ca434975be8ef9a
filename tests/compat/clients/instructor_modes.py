"""instructor: its modes for tools and structured output, over three protocols, and partial objects.

Owns no question of free text: instructor writes schemas into prompts, so that only what a schema leaves no choice for
is the same as of plain requests.
"""

from __future__ import annotations

from typing import Any, Literal

import anthropic
import instructor
import openai
from instructor import Mode
from pydantic import BaseModel

from tests.compat.clients.observing import Observations, Question, main, tokens, user


class Weather(BaseModel):
    """The arguments of the only valid call."""

    city: Literal["Paris"]
    unit: Literal["C"]


class Product(BaseModel):
    """What the object prompt asks for."""

    product: str
    grams: int


def _chats(ask: Question, seen: Observations) -> None:
    settings: dict[str, Any] = {"model": ask.model, "max_tokens": ask.tool_tokens, "temperature": 0, "max_retries": 0}
    plain = openai.OpenAI(base_url=f"{ask.url}/v1", api_key=ask.key, max_retries=0)
    name = ask.tool["name"]
    for mode, more in (
        (Mode.TOOLS, {"parallel_tool_calls": False}),
        (Mode.TOOLS_STRICT, {"parallel_tool_calls": False}),
    ):
        client = instructor.from_openai(plain, mode=mode)
        asked: dict[str, Any] = {**settings, **more, "messages": user(ask.tool_prompt), "response_model": Weather}
        value, completion = client.chat.completions.create_with_completion(**asked)
        end = completion.choices[0].finish_reason
        seen.add("call", f"{mode}, create_with_completion", calls=[[name, value.model_dump()]], end=end)
        *_, last = client.chat.completions.create_partial(**asked)
        seen.add("call", f"{mode}, create_partial", calls=[[name, last.model_dump()]])

    client = instructor.from_openai(plain, mode=Mode.JSON_SCHEMA)
    asked = {**settings, "messages": user(ask.object_prompt), "response_model": Product}
    value, completion = client.chat.completions.create_with_completion(**asked)
    used = tokens(completion.usage.prompt_tokens, completion.usage.completion_tokens)
    facts = {"value": value.model_dump(), "end": completion.choices[0].finish_reason, "tokens": used}
    seen.add("object", f"{Mode.JSON_SCHEMA}, create_with_completion", **facts)
    *_, last = client.chat.completions.create_partial(**asked)
    seen.add("object", f"{Mode.JSON_SCHEMA}, create_partial", value=last.model_dump())


def _responses(ask: Question, seen: Observations) -> None:
    plain = openai.OpenAI(base_url=f"{ask.url}/v1", api_key=ask.key, max_retries=0)
    client = instructor.from_openai(plain, mode=Mode.RESPONSES_TOOLS)
    value, response = client.chat.completions.create_with_completion(
        model=ask.model,
        messages=user(ask.tool_prompt),
        response_model=Weather,
        max_output_tokens=ask.tool_tokens,
        temperature=0,
        parallel_tool_calls=False,
        max_retries=0,
    )
    calls = [[ask.tool["name"], value.model_dump()]]
    seen.add("response call", f"{Mode.RESPONSES_TOOLS}, create_with_completion", calls=calls, end=response.status)


def _messages(ask: Question, seen: Observations) -> None:
    plain = anthropic.Anthropic(base_url=ask.url, api_key=ask.key, max_retries=0)
    client = instructor.from_anthropic(plain, mode=Mode.ANTHROPIC_TOOLS)
    value, message = client.messages.create_with_completion(
        model=ask.model,
        messages=user(ask.tool_prompt),
        response_model=Weather,
        max_tokens=ask.tool_tokens,
        temperature=0,
        max_retries=0,
    )
    calls = [[ask.tool["name"], value.model_dump()]]
    seen.add("message call", f"{Mode.ANTHROPIC_TOOLS}, create_with_completion", calls=calls, end=message.stop_reason)


def _run(ask: Question, seen: Observations) -> None:
    _chats(ask, seen)
    _responses(ask, seen)
    _messages(ask, seen)


if __name__ == "__main__":
    main(_run, package="instructor")
