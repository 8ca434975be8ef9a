"""LiteLLM: its completion function over both protocols."""

from __future__ import annotations

import os
from typing import Any

# Before its import, which asks the internet for a list of prices unless this is set.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens


def _used(usage: Any) -> dict[str, int]:
    return tokens(usage.prompt_tokens, usage.completion_tokens)


def _run(ask: Question, seen: Observations) -> None:
    request: dict[str, Any] = {
        "messages": ask.messages,
        "api_key": ask.key,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "num_retries": 0,
    }
    for protocol, url in (("openai", f"{ask.url}/v1"), ("anthropic", ask.url)):
        target = {"model": f"{protocol}/{ask.model}", "api_base": url}
        whole = litellm.completion(**request, **target)
        [choice] = whole.choices
        facts = {"text": choice.message.content, "end": choice.finish_reason, "tokens": _used(whole.usage)}
        seen.add("chat", f"completion, {protocol}/", **facts)

        text, end, usage = "", None, None
        for chunk in litellm.completion(**request, **target, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                end = choice.finish_reason or end
            usage = getattr(chunk, "usage", None) or usage
        seen.add("chat", f"completion, {protocol}/, `stream`", text=text, end=end, tokens=_used(usage))

        try:
            litellm.completion(**request | target | {"model": f"{protocol}/{UNKNOWN_MODEL}"})
        except litellm.NotFoundError as error:
            call = f"{protocol}/: NotFoundError"
            seen.add("unknown model", call, status=error.status_code, message=error.message)


if __name__ == "__main__":
    main(_run, package="litellm")
