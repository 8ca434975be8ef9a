"""Streams of a running server: real processes, real sockets, and a model whose tokens are known beforehand."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tests.raw_client import CHAT, COMPLETIONS, Client, read_stream, request_bytes, text_of
from tests.server.server_parts import check_idle, counters, expected, until_rings

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

pytestmark = pytest.mark.anyio


def counts(prompt_tokens, completion_tokens):
    """The usage of a request whose prompt is too short to be cached."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_stream_byte_for_byte(synthetic_server):
    """Head and body as documented: one chunk for each write, whole frames in it, [DONE], then the end at once."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    with socket.create_connection(synthetic_server.address, timeout=60) as client, client.makefile("rb") as answer:
        client.sendall(request_bytes(CHAT, body, "X-Request-Id: mine"))
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
        headers = dict(line.strip().split(b": ") for line in iter(answer.readline, b"\r\n"))
        assert headers.pop(b"date")
        assert headers == {
            b"content-type": b"text/event-stream; charset=utf-8",
            b"cache-control": b"no-cache",
            b"x-accel-buffering": b"no",
            b"x-request-id": b"mine",
            b"transfer-encoding": b"chunked",
            b"connection": b"keep-alive",
            b"keep-alive": b"timeout=75",
        }
        received = b""
        while size := int(answer.readline(), 16):
            chunk = answer.read(size)
            assert chunk.startswith(b"data: ")
            assert chunk.endswith(b"\n\n")
            assert answer.readline() == b"\r\n"
            received += chunk
        assert answer.readline() == b"\r\n"
    frames = received.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]
    text = expected("user: hi\nassistant: ", 5)
    deltas = [{"content": character} for character in text]
    deltas[0]["role"] = "assistant"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == deltas
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1


async def test_64_tokens_are_64_frames(synthetic_server):
    """Each with its commit time, in order, and the token counts at the end when asked for."""
    options = {"include_usage": True, "include_timing": True}
    body = {"prompt": "count", "max_tokens": 64, "stream_options": options}
    *chunks, usage, done = await read_stream(synthetic_server.address, COMPLETIONS, body)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == list(expected("count", 64))
    times = [chunk["timing"]["committed_ns"] for chunk in chunks]
    assert times == sorted(set(times))
    assert usage["choices"] == []
    assert usage["usage"] == counts(5, 64)
    assert done == "[DONE]"


def test_not_streamed(synthetic_server):
    """The same text in one response, with the counts."""
    url = synthetic_server.url
    completion = httpx.post(url + COMPLETIONS, json={"prompt": "abc"}).json()
    assert completion["choices"] == [
        {"index": 0, "text": expected("abc", 16), "finish_reason": "length", "logprobs": None, "prompt_logprobs": None}
    ]
    assert completion["usage"] == counts(3, 16)
    chat = httpx.post(
        url + CHAT, json={"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 7}
    ).json()
    assert chat["choices"][0]["message"] == {
        "role": "assistant",
        "content": expected("user: hi\nassistant: ", 7),
        "refusal": None,
    }


async def test_chat_runs_to_the_models_length_by_default(synthetic_server):
    """Without max_tokens a chat ends where the context does."""
    body = {"messages": [{"role": "user", "content": "x" * 8000}], "stream_options": {"include_usage": True}}
    *_, usage, _ = await read_stream(synthetic_server.address, CHAT, body)
    assert usage["usage"]["total_tokens"] == 8192


@pytest.mark.parametrize("stream", [True, False])
async def test_stop_string_across_tokens(synthetic_server, stream):
    """The text ends before it, with reason stop; the engine stops too."""
    text = expected("stop", 40)
    stop = text[20:24]
    body = {"prompt": "stop", "max_tokens": 4000, "stop": ["never", stop]}

    async with Client(synthetic_server.address) as client:
        if stream:
            events = await client.read(COMPLETIONS, body)
            assert events[-1] == "[DONE]"
            choice = {"text": text_of(events), "finish_reason": events[-2]["choices"][0]["finish_reason"]}
        else:
            async with httpx.AsyncClient(base_url=synthetic_server.url) as http:
                answer = (await http.post(COMPLETIONS, json=body)).json()
            assert answer["usage"]["completion_tokens"] == 24
            choice = answer["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
        await check_idle(client, synthetic_server)


async def test_stop_token_is_not_shown(synthetic_server):
    """A token among stop_token_ids ends the text before it."""
    text = expected("token", 30)
    end = next(n for n in range(10, 30) if text[n] not in text[:n])
    body = {"prompt": "token", "max_tokens": 30, "stop_token_ids": [ord(text[end])]}
    events = await read_stream(synthetic_server.address, COMPLETIONS, body)
    assert text_of(events) == text[:end]
    assert events[-2]["choices"][0] == {"index": 0, "text": "", "finish_reason": "stop"}


async def test_hundred_streams_each_tenth_aborted(start_server):
    """Every client gets exactly its own tokens, in order; the aborted ones leave no ring and no KV block behind.

    The KV cache holds 512 blocks, much less than the clients want together, so sequences are preempted too. That all
    blocks are back is shown by a prompt that is admitted only when every single one is free.
    """

    async def one(client, number):
        prompt, count = f"client {number}", 20 + 3 * number
        if number % 10:
            events = await client.read(COMPLETIONS, {"prompt": prompt, "max_tokens": count})
            assert events[-1] == "[DONE]"
            return text_of(events) == expected(prompt, count)
        stream = await client.open(COMPLETIONS, {"prompt": prompt, "max_tokens": 8000, "stream": True})
        text = ""
        async for event in stream.events():
            text += text_of([event])
            if len(text) >= count // 2:
                break
        stream.abort()
        return expected(prompt, len(text)) == text

    server = start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--kv-cache-mib", "8")
    async with Client(server.address) as client:
        assert all(await asyncio.gather(*(one(client, number) for number in range(100))))
        await until_rings(server, 0)
        assert counters(server)["cancels"] == 10, "those that were aborted, and no other"
        whole = "x" * (512 * 16 - 1)
        events = await client.read(COMPLETIONS, {"prompt": whole, "max_tokens": 1})
        assert text_of(events) == expected(whole, 1)


@pytest.fixture(scope="module")
def narrow_server(start_server):
    """A server that runs one sequence at a time, in steps of 100 ms, 8 tokens of a prompt in each."""
    options = ["--max-num-seqs", "1", "--synthetic-step-ms", "100", "--max-num-batched-tokens", "8"]
    return start_server("--model", "synthetic", *options)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode", "decode after a large body"])
async def test_disconnect_cancels(narrow_server, stage, stream):
    """A client that leaves while its request waits, is prefilled or decoded frees its ring, streamed or not.

    None of these requests could end by itself in the time the test waits.
    """
    long: dict[str, Any] = {
        "prompt": "x" * (8000 if stage == "prefill" else 1),
        "max_tokens": 190 if stage == "prefill" else 8000,
    }
    if stage == "decode after a large body":
        long["metadata"] = {"label": "x" * 2**20}

    async with Client(narrow_server.address) as client:
        if stage == "queue":
            occupant = await client.open(COMPLETIONS, long | {"stream": True})
            await anext(aiter(occupant.events()))
        reader, writer = await client.send(COMPLETIONS, long | {"stream": stream})
        await until_rings(narrow_server, 2 if stage == "queue" else 1)
        if stage.startswith("decode") and stream:
            await reader.readuntil(b'"text"')
        writer.transport.abort()
        await until_rings(narrow_server, 1 if stage == "queue" else 0)
    await until_rings(narrow_server, 0)


def test_openai_client(synthetic_server):
    """The official client, unchanged: streamed and not, and its errors."""
    with openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
        stream = client.chat.completions.create(model="synthetic", messages=messages, max_tokens=9, stream=True)
        text = "".join(str(chunk.choices[0].delta.content) for chunk in stream)
        whole = client.chat.completions.create(model="synthetic", messages=messages, max_tokens=9)
        assert text == whole.choices[0].message.content == expected("user: hi\nassistant: ", 9)
        assert [model.id for model in client.models.list()] == ["synthetic"]
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.chat.completions.create(model="gpt-9", messages=messages)
