"""openai-python: chats, completions and Responses, whole and in streams, by both of its clients."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import openai

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.responses import Response


def _usage(usage: CompletionUsage | None) -> dict[str, int]:
    assert usage is not None
    return tokens(usage.prompt_tokens, usage.completion_tokens)


def _chats(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    whole = client.chat.completions.create(
        model=ask.model, messages=ask.messages, max_tokens=ask.max_tokens, temperature=0
    )
    [choice] = whole.choices
    call = "chat.completions.create"
    seen.add("chat", call, text=choice.message.content, end=choice.finish_reason, tokens=_usage(whole.usage))

    raw = client.chat.completions.with_raw_response.create(
        model=ask.model, messages=ask.messages, max_tokens=ask.max_tokens, temperature=0, stop=[ask.stop]
    )
    [choice] = raw.parse().choices
    call = "chat.completions.with_raw_response.create, `stop`"
    seen.add(
        "stopped chat",
        call,
        text=choice.message.content,
        end=choice.finish_reason,
        status=raw.http_response.status_code,
    )

    chunks = list(
        client.chat.completions.create(
            model=ask.model,
            messages=ask.messages,
            max_tokens=ask.max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in deltas)
    call = "chat.completions.create, `stream`"
    seen.add("chat", call, text=text, end=deltas[-1].finish_reason, tokens=_usage(chunks[-1].usage))

    with client.chat.completions.stream(
        model=ask.model,
        messages=ask.messages,
        max_tokens=ask.max_tokens,
        temperature=0,
        stop=[ask.stop],
        stream_options={"include_usage": True},
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()  # of an answer that ends by its length this helper makes an exception
    text = "".join(event.delta for event in events if event.type == "content.delta")
    assert text == final.choices[0].message.content, "the helper's deltas are not its final text"
    end = final.choices[0].finish_reason
    seen.add("stopped chat", "chat.completions.stream, `stop`", text=text, end=end, tokens=_usage(final.usage))


def _responses(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    def add(call: str, text: str, response: Response, kind: str = "response") -> None:
        usage = response.usage
        assert usage is not None
        used = tokens(usage.input_tokens, usage.output_tokens)
        seen.add(kind, call, text=text, end=response.status, tokens=used)

    whole = client.responses.create(model=ask.model, input=ask.prompt, max_output_tokens=ask.max_tokens, temperature=0)
    add("responses.create", whole.output_text, whole)

    text = ""
    for event in client.responses.create(
        model=ask.model, input=ask.prompt, max_output_tokens=ask.max_tokens, temperature=0, stream=True
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
        elif event.type in {"response.completed", "response.incomplete"}:
            add("responses.create, `stream`", text, event.response)

    # Without a limit, because this helper has no final response for one that is incomplete.
    with client.responses.stream(model=ask.model, input=ask.prompt, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    add("responses.stream", text, final, kind="complete response")


def _completions(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    whole = client.completions.create(model=ask.model, prompt=ask.prompt, max_tokens=ask.max_tokens, temperature=0)
    [choice] = whole.choices
    seen.add("completion", "completions.create", text=choice.text, end=choice.finish_reason, tokens=_usage(whole.usage))

    deltas = [
        choice
        for chunk in client.completions.create(
            model=ask.model, prompt=ask.prompt, max_tokens=ask.max_tokens, temperature=0, stream=True
        )
        for choice in chunk.choices
    ]
    text = "".join(choice.text for choice in deltas)
    seen.add("completion", "completions.create, `stream`", text=text, end=deltas[-1].finish_reason)


async def _async(ask: Question, seen: Observations) -> None:
    async with openai.AsyncOpenAI(base_url=f"{ask.url}/v1", api_key=ask.key, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=ask.model, messages=ask.messages, max_tokens=ask.max_tokens, temperature=0, stream=True
        )
        deltas = [choice async for chunk in stream for choice in chunk.choices]
        text = "".join(choice.delta.content or "" for choice in deltas)
        seen.add("chat", "AsyncOpenAI, `stream`", text=text, end=deltas[-1].finish_reason)
        names = [model.id async for model in client.models.list()]
        seen.add("models", "AsyncOpenAI, models.list", names=names)


def _errors(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    try:
        client.chat.completions.create(model=UNKNOWN_MODEL, messages=ask.messages)
    except openai.NotFoundError as error:
        seen.add("unknown model", "NotFoundError", status=error.status_code, message=error.message, code=error.code)
    with openai.OpenAI(base_url=f"{ask.url}/v1", api_key="wrong", max_retries=0) as stranger:
        try:
            stranger.models.list()
        except openai.AuthenticationError as error:
            seen.add("wrong key", "AuthenticationError", status=error.status_code, message=error.message)


def _embeddings(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    """The client asks for base64 by itself."""
    vector = client.embeddings.create(model=ask.model, input=ask.prompt).data[0].embedding
    seen.add("embedding", "embeddings.create", vector=[round(number, 5) for number in vector])


def _run(ask: Question, seen: Observations) -> None:
    with openai.OpenAI(base_url=f"{ask.url}/v1", api_key=ask.key, max_retries=0) as client:
        for part in (_chats, _completions, _responses, _errors, _embeddings):
            part(client, ask, seen)
        seen.add("models", "models.list", names=[model.id for model in client.models.list()])
    asyncio.run(_async(ask, seen))


if __name__ == "__main__":
    main(_run, package="openai")
