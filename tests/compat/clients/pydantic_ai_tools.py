"""pydantic-ai: an agent's tools, output types and thinking, over chats, Responses and Anthropic's messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import openai
from pydantic import BaseModel
from pydantic_ai import Agent, ModelResponse, NativeOutput, TextPart, ThinkingPart, ToolCallPart, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.compat.clients.observing import Observations, Question, calls_of, main, tokens

if TYPE_CHECKING:
    from collections.abc import Callable


class Product(BaseModel):
    """What the object prompt asks for."""

    product: str
    grams: int


class Weather(BaseModel):
    """The arguments of the only valid call."""

    city: Literal["Paris"]
    unit: Literal["C"]


class _FirstLook(AbstractCapability[Any]):  # type: ignore[misc] # it is not installed where mypy runs
    """An agent's first step calls the function `look`, and its second one the output tool of this name."""

    def __init__(self, output: str) -> None:
        self._output = output

    def get_model_settings(self) -> Any:
        """By step."""
        return lambda context: {"tool_choice": ["look" if context.run_step == 1 else self._output]}


def _used(run: Any) -> dict[str, int]:
    return tokens(run.usage.input_tokens, run.usage.output_tokens)


async def _ask(kind: str, model: Callable[[str], Any], ask: Question, seen: Observations) -> None:
    """`model` makes one that talks to a URL."""
    here = model(ask.url)
    name = type(here).__name__
    settings: Any = {"max_tokens": ask.tool_tokens, "temperature": 0, "parallel_tool_calls": False}

    # Its answer is the call of an output tool, which it demands.
    output = ToolOutput(Weather, name=ask.tool["name"], description=ask.tool["description"])
    agent = Agent(here, output_type=output, model_settings=settings)
    run = await agent.run(ask.tool_prompt)
    parts = [
        (part.tool_call_id, part.tool_name, part.args) for part in run.response.parts if isinstance(part, ToolCallPart)
    ]
    calls = calls_of(parts)
    assert [given for _, given in calls] == [run.output.model_dump()], "its output is another one"
    seen.add(f"{kind}call", f"{name}, Agent.run, ToolOutput", calls=calls)
    async with agent.run_stream(ask.tool_prompt) as stream:
        value = (await stream.get_output()).model_dump()
    seen.add(f"{kind}call", f"{name}, Agent.run_stream, ToolOutput", calls=[[ask.tool["name"], value]])

    # A function's result goes into a second turn, which answers.
    done: list[Any] = []
    tooled = Agent(here, output_type=output, model_settings=settings, capabilities=[_FirstLook(ask.tool["name"])])

    @tooled.tool_plain
    def look() -> str:
        done.append(None)
        return ask.tool_result

    value = (await tooled.run(ask.tool_prompt)).output.model_dump()
    assert len(done) == 1, f"the function was called {len(done)} times"
    seen.add(f"{kind}call", f"{name}, Agent.run, after a function", calls=[[ask.tool["name"], value]])

    native = Agent(here, output_type=NativeOutput(Product), model_settings=settings)
    run_of_object = await native.run(ask.object_prompt)
    facts = {"value": run_of_object.output.model_dump(), "tokens": _used(run_of_object)}
    seen.add(f"{kind}object", f"{name}, Agent.run, NativeOutput", **facts)
    async with native.run_stream(ask.object_prompt) as stream_of_object:
        value = (await stream_of_object.get_output()).model_dump()
    seen.add(f"{kind}object", f"{name}, Agent.run_stream, NativeOutput", value=value, tokens=_used(stream_of_object))

    *history, last = ask.dialogue
    turns = [
        ModelRequest([UserPromptPart(turn["content"])])
        if turn["role"] == "user"
        else ModelResponse([TextPart(turn["content"])])
        for turn in history
    ]
    settings = {"max_tokens": ask.dialogue_tokens, "temperature": 0}
    thinker = Agent(model(ask.thinker), model_settings=settings)
    run_of_thought = await thinker.run(last["content"], message_history=turns)
    [thought] = [part for part in run_of_thought.response.parts if isinstance(part, ThinkingPart)]
    # What Responses has beside a summary is a detail to it.
    raw = (thought.provider_details or {}).get("raw_content", [])
    facts = {
        "reasoning": thought.content or "".join(raw),
        "text": run_of_thought.output,
        "tokens": _used(run_of_thought),
    }
    seen.add(f"{kind}reasoning", f"{name}, Agent.run, ThinkingPart", **facts)


async def _ask_all(ask: Question, seen: Observations) -> None:
    def chats(url: str) -> Any:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ask.key, max_retries=0)
        return OpenAIChatModel(ask.model, provider=OpenAIProvider(openai_client=client))

    def responses(url: str) -> Any:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=ask.key, max_retries=0)
        return OpenAIResponsesModel(ask.model, provider=OpenAIProvider(openai_client=client))

    def messages(url: str) -> Any:
        client = anthropic.AsyncAnthropic(base_url=url, api_key=ask.key, max_retries=0)
        # It knows Anthropic's models only, and has to be told what another one can do.
        profile: Any = {"supports_json_schema_output": True}
        return AnthropicModel(ask.model, provider=AnthropicProvider(anthropic_client=client), profile=profile)

    for kind, model in (("", chats), ("response ", responses), ("message ", messages)):
        await _ask(kind, model, ask, seen)


if __name__ == "__main__":
    main(lambda ask, seen: asyncio.run(_ask_all(ask, seen)), package="pydantic-ai-slim")
