"""pydantic-ai: an agent that answers in plain text, over chats, Responses and Anthropic's messages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anthropic
import openai
from pydantic_ai import Agent, ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

# Its word for an answer that a limit ended, in the words of the protocols.
_ENDS = {"chat": {"length": "length"}, "response": {"length": "incomplete"}, "message": {"length": "max_tokens"}}


def _facts(kind: str, text: str, run: Any) -> dict[str, Any]:
    """Of a run of an agent."""
    return {
        "text": text,
        "end": _ENDS[kind].get(run.response.finish_reason, run.response.finish_reason),
        "tokens": tokens(run.usage.input_tokens, run.usage.output_tokens),
    }


async def _ask(kind: str, model: Callable[[str], Any], ask: Question, seen: Observations) -> None:
    agent = Agent(model(ask.model), model_settings={"max_tokens": ask.max_tokens, "temperature": 0})
    name = type(agent.model).__name__
    whole = await agent.run(ask.prompt)
    seen.add(kind, f"{name}, Agent.run", **_facts(kind, whole.output, whole))

    async with agent.run_stream(ask.prompt) as stream:
        text = "".join([delta async for delta in stream.stream_text(delta=True)])
        seen.add(kind, f"{name}, Agent.run_stream", **_facts(kind, text, stream))

    try:
        await Agent(model(UNKNOWN_MODEL)).run(ask.prompt)
    except ModelHTTPError as error:
        seen.add("unknown model", f"{name}: ModelHTTPError", status=error.status_code, message=error.message)


async def _ask_all(ask: Question, seen: Observations) -> None:
    async with (
        openai.AsyncOpenAI(base_url=f"{ask.url}/v1", api_key=ask.key, max_retries=0) as of_openai,
        anthropic.AsyncAnthropic(base_url=ask.url, api_key=ask.key, max_retries=0) as of_anthropic,
    ):
        openai_provider = OpenAIProvider(openai_client=of_openai)
        anthropic_provider = AnthropicProvider(anthropic_client=of_anthropic)
        await _ask("chat", lambda name: OpenAIChatModel(name, provider=openai_provider), ask, seen)
        await _ask("response", lambda name: OpenAIResponsesModel(name, provider=openai_provider), ask, seen)
        await _ask("message", lambda name: AnthropicModel(name, provider=anthropic_provider), ask, seen)


if __name__ == "__main__":
    main(lambda ask, seen: asyncio.run(_ask_all(ask, seen)), package="pydantic-ai-slim")
