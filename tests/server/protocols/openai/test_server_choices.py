"""Several choices, logprobs and echoed prompts of a running server, and as the official client reads them.

The synthetic model is certain: each of its tokens has logprob 0, every other token none.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.raw_client import CHAT, COMPLETIONS, Client, read_stream
from tests.server.server_parts import check_idle, expected, until_rings

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionTokenLogprob

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
HI_PROMPT = "user: hi\nassistant: "
NEVER = -9999.0
MORE_THAN_A_RING = 1100  # tokens: no choice can be drained whole before the others begin


def chunks_by_choice(events):
    """The choices of all chunks, by their index, in the order of each."""
    choices = sorted(
        (choice for event in events if event != "[DONE]" for choice in event["choices"]), key=lambda each: each["index"]
    )
    return [list(chunks) for _, chunks in itertools.groupby(choices, key=lambda each: each["index"])]


def post(server, path, body):
    """An answer that is not streamed."""
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("stop", [[], ["\x00"]])
async def test_choices_in_one_stream(synthetic_server, stop):
    """Each is whole, with its own role and finish reason; one usage for all and one [DONE] come last."""
    body = {
        "messages": HI,
        "max_tokens": MORE_THAN_A_RING,
        "n": 3,
        "stop": stop,
        "stream_options": {"include_usage": True},
    }
    *chunks, usage, done = await read_stream(synthetic_server.address, CHAT, body)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == len(HI_PROMPT)
    assert usage["usage"]["completion_tokens"] == 3 * MORE_THAN_A_RING
    assert usage["usage"]["total_tokens"] == len(HI_PROMPT) + 3 * MORE_THAN_A_RING
    choices = chunks_by_choice(chunks)
    assert [choice[0]["index"] for choice in choices] == [0, 1, 2]
    for choice in choices:
        assert [chunk["delta"].get("role") for chunk in choice] == ["assistant"] + [None] * (MORE_THAN_A_RING - 1)
        assert "".join(chunk["delta"]["content"] for chunk in choice) == expected(HI_PROMPT, MORE_THAN_A_RING)
        assert [chunk["finish_reason"] for chunk in choice] == [None] * (MORE_THAN_A_RING - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order), "all choices come at the same time"


def test_choices_in_one_answer(synthetic_server):
    """In their order; the prompt counts once."""
    answer = post(synthetic_server, COMPLETIONS, {"prompt": "abc", "max_tokens": 5, "n": 3})
    assert answer["choices"] == [
        {
            "index": index,
            "text": expected("abc", 5),
            "finish_reason": "length",
            "logprobs": None,
            "prompt_logprobs": None,
        }
        for index in range(3)
    ]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 15, 18)


async def test_prefix_cache_is_reported(synthetic_server):
    """A prompt that was there before is found in the cache, less what has to run in any case: streamed and not."""
    body = {"prompt": "cached " * 100, "max_tokens": 2}
    post(synthetic_server, COMPLETIONS, body)
    counts = post(synthetic_server, COMPLETIONS, body)["usage"]
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < 700
    for stop in ([], ["\x00"]):
        streamed = body | {"stream_options": {"include_usage": True}, "stop": stop}
        *_, usage, _ = await read_stream(synthetic_server.address, COMPLETIONS, streamed)
        assert usage["usage"] == counts


@pytest.mark.parametrize("logprobs", [None, 2])
async def test_prefix_cache_is_reported_when_a_stop_string_ends_the_answer(synthetic_server, logprobs):
    """The answer ends before the engine does; the number of cached tokens is known all the same."""
    prompt = f"{logprobs} stopped " * 60
    stop = expected(prompt, 40)[20:22]
    body = {"prompt": prompt, "max_tokens": 40, "stop": stop, "logprobs": logprobs, "n": 2}
    first, again = (post(synthetic_server, COMPLETIONS, body) for _ in range(2))
    assert [choice["finish_reason"] for choice in again["choices"]] == ["stop", "stop"]
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 400
    assert again["choices"] == first["choices"]
    *_, usage, _ = await read_stream(
        synthetic_server.address, COMPLETIONS, body | {"stream_options": {"include_usage": True}}
    )
    assert usage["usage"] == again["usage"]


@pytest.fixture(scope="module")
def five_ms_server(start_server):
    """A server whose requests take long enough to leave them, with short rings."""
    return start_server("--model", "synthetic", "--synthetic-step-ms", "5", "--ring-capacity", "256")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("read", [0, 1, 40])
async def test_client_that_leaves_cancels_all_choices(five_ms_server, stream, read):
    """At any point of its answer; nothing is left of it."""
    async with Client(five_ms_server.address) as client:
        body = {"prompt": "leave", "max_tokens": 8000, "n": 4, "stream": stream}
        reader, writer = await client.send(COMPLETIONS, body)
        await until_rings(five_ms_server, 4)
        for _ in range(read if stream else 0):
            await reader.readuntil(b'"text"')
        writer.transport.abort()
        await until_rings(five_ms_server, 0)
        await check_idle(client, five_ms_server)


async def test_slow_reader_of_several_choices(start_server):
    """All of its rings wait for it, and nothing is lost when it goes on."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "0", "--ring-capacity", "128") as server:
        async with Client(server.address) as client:
            body = {"prompt": "slow", "max_tokens": 3000, "n": 3, "stream": True, "logprobs": 1}
            slow = await client.open(COMPLETIONS, body, receive_buffer=4096)
            await client.read(COMPLETIONS, {"prompt": "beside it", "max_tokens": 2000})
            choices = chunks_by_choice([event async for event in slow.events()])
            for choice in choices:
                assert "".join(chunk["text"] for chunk in choice) == expected("slow", 3000)
                assert len(choice) == 3000
            await check_idle(client, server)


async def test_engine_that_dies_ends_all_choices_once(start_server):
    """One error event and one [DONE], after all that the engine had committed."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "5") as server:
        async with Client(server.address) as client:
            stream = await client.open(COMPLETIONS, {"prompt": "die", "max_tokens": 8000, "n": 3, "stream": True})
            events = stream.events()
            first = [await anext(events) for _ in range(10)]
            os.kill(server.engine.pid, signal.SIGKILL)
            *chunks, error, done = first + [event async for event in events]
            assert done == "[DONE]"
            assert error["error"]["code"] == "engine_died"
            for choice in chunks_by_choice(chunks):
                text = "".join(chunk["text"] for chunk in choice)
                assert text == expected("die", len(text))
                assert {chunk["finish_reason"] for chunk in choice} == {None}


async def test_more_choices_than_places_are_refused_together(start_server):
    """A request gets all of its choices or none: nothing of a refused one has begun."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "5", "--max-requests", "64") as server:
        async with Client(server.address) as client:
            held = await client.open(COMPLETIONS, {"prompt": "hold", "max_tokens": 8000, "stream": True})
            await anext(held.events())
            refused = await client.open(COMPLETIONS, {"prompt": "x", "n": 64, "stream": True})
            assert refused.status == 429
            await until_rings(server, 1)


async def test_completion_logprobs(synthetic_server):
    """A token is certain; every other one cannot come, which is said in a number that JSON has."""
    body = {"prompt": "logprobs", "max_tokens": 6, "logprobs": 2}
    text = expected("logprobs", 6)
    [choice] = post(synthetic_server, COMPLETIONS, body)["choices"]
    assert choice["logprobs"]["tokens"] == list(text)
    assert choice["logprobs"]["token_logprobs"] == [0.0] * 6
    assert choice["logprobs"]["text_offset"] == list(range(6))
    for character, top in zip(text, choice["logprobs"]["top_logprobs"], strict=True):
        assert top[character] == 0.0
        assert sorted(top.values()) == [NEVER, 0.0]
    [streamed] = chunks_by_choice(await read_stream(synthetic_server.address, COMPLETIONS, body))
    assert [chunk["text"] for chunk in streamed] == list(text)
    for name, whole in choice["logprobs"].items():
        assert [value for chunk in streamed for value in chunk["logprobs"][name]] == whole


@pytest.mark.parametrize("n", [1, 2])
async def test_echo(synthetic_server, n):
    """The prompt stands in front of the completion, as the first chunk of each choice of a stream."""
    body = {"prompt": "Zü🐝", "max_tokens": 3, "echo": True, "n": n}
    text = expected("Zü🐝", 3)
    answer = post(synthetic_server, COMPLETIONS, body)
    assert [choice["text"] for choice in answer["choices"]] == ["Zü🐝" + text] * n
    choices = chunks_by_choice(await read_stream(synthetic_server.address, COMPLETIONS, body))
    assert [[chunk["text"] for chunk in choice] for choice in choices] == [["Zü🐝", *text]] * n


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("max_tokens", [0, 2])
async def test_echo_with_logprobs(five_ms_server, stream, max_tokens):
    """Each token of a prompt is scored, whose notes are more than a drain takes; with max_tokens 0 there is no more."""
    prompt = "score me " * 100
    body = {"prompt": prompt, "max_tokens": max_tokens, "echo": True, "logprobs": 5}
    text = prompt + expected(prompt, max_tokens)
    if stream:
        body["stream_options"] = {"include_usage": True}
        *chunks, usage, _ = await read_stream(five_ms_server.address, COMPLETIONS, body)
        [choice] = chunks_by_choice(chunks)
        assert [chunk["text"] for chunk in choice] == [prompt, *text[len(prompt) :]]
        assert choice[-1]["finish_reason"] == "length"
        lists = {
            name: [value for chunk in choice for value in chunk["logprobs"][name]] for name in choice[0]["logprobs"]
        }
    else:
        usage = post(five_ms_server, COMPLETIONS, body)
        [choice] = usage["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        lists = choice["logprobs"]
    assert usage["usage"]["completion_tokens"] == max_tokens
    assert lists["tokens"] == list(text)
    assert lists["text_offset"] == list(range(len(text)))
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert all(0.0 in top.values() for top in lists["top_logprobs"][1:])
    assert lists["token_logprobs"][len(prompt) :] == [0.0] * max_tokens


def check_entries(entries: list[ChatCompletionTokenLogprob], text: str) -> None:
    """One entry for each character of the synthetic model's text, which it is sure of."""
    assert [entry.token for entry in entries] == list(text)
    assert [entry.bytes for entry in entries] == [[ord(character)] for character in text]
    assert [entry.logprob for entry in entries] == [0.0] * 5
    for entry in entries:
        best, other = entry.top_logprobs
        assert (best.token, best.logprob) == (entry.token, 0.0)
        assert other.logprob == NEVER


def test_openai_client_with_choices_and_logprobs(synthetic_server):
    """The official client parses all of it, streamed and not."""
    asked: dict[str, Any] = {
        "model": "synthetic",
        "messages": HI,
        "max_tokens": 5,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 2,
    }
    text = expected(HI_PROMPT, 5)
    with openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**asked)
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        for choice in whole.choices:
            assert (choice.message.content, choice.finish_reason) == (text, "length")
            check_entries(choice.logprobs.content, text)
        assert whole.usage.prompt_tokens_details.cached_tokens is not None
        stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        *chunks, usage = list(stream)
        assert usage.usage.completion_tokens == 15
        for index in range(3):
            choices = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
            assert "".join(choice.delta.content for choice in choices) == text
            assert choices[-1].finish_reason == "length"
            check_entries([entry for choice in choices for entry in choice.logprobs.content], text)
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        completion = client.completions.create(model="synthetic", prompt="ab", max_tokens=0, echo=True, logprobs=1)
        assert completion.choices[0].text == "ab"
        assert completion.choices[0].logprobs.tokens == ["a", "b"]


async def test_openai_async_client(synthetic_server):
    """The asynchronous client reads several choices beside one another too."""
    async with openai.AsyncOpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="synthetic", prompt="ab", max_tokens=9, n=2, stream=True)
        texts = ["", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [expected("ab", 9)] * 2
