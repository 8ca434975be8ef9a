"""LangChain: ChatOpenAI, OpenAI with several prompts, and ChatAnthropic."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import anthropic
import openai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAI

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens


def _facts(message: Any, end: str) -> dict[str, Any]:
    """Of a message; `end` is the name of its reason to end."""
    usage = message.usage_metadata
    return {
        "text": message.text,
        "end": message.response_metadata[end],
        "tokens": tokens(usage["input_tokens"], usage["output_tokens"]),
    }


def _whole(chunks: Any) -> Any:
    """The sum of a stream's chunks, as LangChain adds them."""
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


def _of_openai(ask: Question, seen: Observations) -> None:
    settings: dict[str, Any] = {"base_url": f"{ask.url}/v1", "api_key": ask.key, "temperature": 0, "max_retries": 0}
    chat = ChatOpenAI(model=ask.model, max_tokens=ask.max_tokens, stream_usage=True, **settings)
    seen.add("chat", "ChatOpenAI.invoke", **_facts(chat.invoke(ask.prompt), "finish_reason"))
    seen.add("chat", "ChatOpenAI.stream", **_facts(_whole(chat.stream(ask.prompt)), "finish_reason"))
    for message in chat.batch([ask.prompt, ask.prompt]):
        seen.add("chat", "ChatOpenAI.batch", **_facts(message, "finish_reason"))

    complete = OpenAI(model=ask.model, max_tokens=ask.max_tokens, **settings)
    seen.add("completions", "OpenAI.batch, two prompts in one request", texts=complete.batch([ask.prompt, ask.stop]))
    seen.add("completion", "OpenAI.stream", text="".join(complete.stream(ask.prompt)))

    try:
        ChatOpenAI(model=UNKNOWN_MODEL, **settings).invoke(ask.prompt)
    except openai.NotFoundError as error:
        seen.add("unknown model", "ChatOpenAI: NotFoundError", status=error.status_code, message=error.message)


def _of_anthropic(ask: Question, seen: Observations) -> None:
    settings: dict[str, Any] = {"base_url": ask.url, "api_key": ask.key, "temperature": 0, "max_retries": 0}
    chat = ChatAnthropic(model=ask.model, max_tokens=ask.max_tokens, **settings)
    seen.add("message", "ChatAnthropic.invoke", **_facts(chat.invoke(ask.prompt), "stop_reason"))
    seen.add("message", "ChatAnthropic.stream", **_facts(_whole(chat.stream(ask.prompt)), "stop_reason"))
    try:
        ChatAnthropic(model=UNKNOWN_MODEL, max_tokens=ask.max_tokens, **settings).invoke(ask.prompt)
    except anthropic.NotFoundError as error:
        seen.add("unknown model", "ChatAnthropic: NotFoundError", status=error.status_code, message=error.message)


def _run(ask: Question, seen: Observations) -> None:
    seen.version = ", ".join(f"{name} {version(f'langchain-{name}')}" for name in ("openai", "anthropic"))
    _of_openai(ask, seen)
    _of_anthropic(ask, seen)


if __name__ == "__main__":
    main(_run)
