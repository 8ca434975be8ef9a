"""anthropic-sdk-python: messages, whole and in streams, and the count of their tokens."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens

# Its functions have no such argument any more.
_GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}


def _add(seen: Observations, kind: str, call: str, message: anthropic.types.Message) -> None:
    text = "".join(block.text for block in message.content if block.type == "text")
    usage = message.usage
    prompt = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    seen.add(kind, call, text=text, end=message.stop_reason, tokens=tokens(prompt, usage.output_tokens))


def _run(ask: Question, seen: Observations) -> None:
    with anthropic.Anthropic(base_url=ask.url, api_key=ask.key, max_retries=0) as client:
        whole = client.messages.create(model=ask.model, messages=ask.messages, max_tokens=ask.max_tokens, **_GREEDY)
        _add(seen, "message", "messages.create", whole)

        stopped = client.messages.create(
            model=ask.model,
            messages=ask.messages,
            max_tokens=ask.max_tokens,
            **_GREEDY,
            stop_sequences=[ask.stop],
        )
        _add(seen, "stopped message", "messages.create, `stop_sequences`", stopped)

        text, end = "", None
        for event in client.messages.create(
            model=ask.model, messages=ask.messages, max_tokens=ask.max_tokens, **_GREEDY, stream=True
        ):
            if event.type == "content_block_delta" and event.delta.type == "text_delta":
                text += event.delta.text
            elif event.type == "message_delta":
                end = event.delta.stop_reason
        seen.add("message", "messages.create, `stream`", text=text, end=end)

        with client.messages.stream(
            model=ask.model, messages=ask.messages, max_tokens=ask.max_tokens, **_GREEDY
        ) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == stream.get_final_text(), "the helper's texts are not its final text"
        _add(seen, "message", "messages.stream", final)

        seen.add("models", "models.list", names=[card.id for card in client.models.list()])
        assert client.models.retrieve(ask.model).id == ask.model

        count = client.messages.count_tokens(model=ask.model, messages=ask.messages)
        seen.add("token count", "messages.count_tokens", count=count.input_tokens)

        try:
            client.messages.create(model=UNKNOWN_MODEL, messages=ask.messages, max_tokens=ask.max_tokens)
        except anthropic.NotFoundError as error:
            seen.add("unknown model", "NotFoundError", status=error.status_code, message=error.message)


if __name__ == "__main__":
    main(_run, package="anthropic")
