"""Several prompts in one request: each has the choices that it would have alone.

The synthetic model answers each prompt with a text of its own.
"""

from __future__ import annotations

import httpx
import openai
import pytest

from rbee.messages import pack_token_ids
from tests.fakes import RecordingEngine
from tests.raw_client import COMPLETIONS, Client, read_stream
from tests.server.protocols.parameters_parts import MODEL, read, ready, refusal
from tests.server.server_parts import check_idle, expected, serving, until_rings

pytestmark = pytest.mark.anyio

PROMPTS = ["one", [116, 119, 111], "three", "one"]  # a text twice, and "two" as ids
TEXTS = ["one", "two", "three", "one"]
PROMPT_TOKENS = sum(map(len, TEXTS))


def post(server, body):
    """An answer that is not streamed."""
    response = httpx.post(server.url + COMPLETIONS, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def chunks_of(events, index):
    """The choices of this index in all chunks."""
    choices = [choice for event in events if event != "[DONE]" for choice in event["choices"]]
    return [choice for choice in choices if choice["index"] == index]


def test_each_prompt_has_n_choices(synthetic_server):
    """Choice j of prompt i has index i * n + j, and each prompt counts once."""
    answer = post(synthetic_server, {"prompt": PROMPTS, "max_tokens": 9, "n": 2})
    assert [choice["index"] for choice in answer["choices"]] == [*range(8)]
    assert [choice["text"] for choice in answer["choices"]] == [expected(text, 9) for text in TEXTS for _ in range(2)]
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (PROMPT_TOKENS, 8 * 9)
    assert usage["total_tokens"] == PROMPT_TOKENS + 72


@pytest.mark.parametrize("stop", [[], ["\x00"]])
async def test_streamed_side_by_side(synthetic_server, stop):
    """Chunks of all choices alternate; each counts its own prompt, and the end counts all."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": PROMPTS, "max_tokens": 1500, "n": 2, "stream_options": options, "stop": stop}
    *chunks, usage, done = await read_stream(synthetic_server.address, COMPLETIONS, body)
    assert done == "[DONE]"
    assert usage["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert usage["usage"]["completion_tokens"] == 8 * 1500
    for index, text in enumerate(text for text in TEXTS for _ in range(2)):
        choice = chunks_of(chunks, index)
        assert "".join(chunk["text"] for chunk in choice) == expected(text, 1500)
        assert [chunk["finish_reason"] for chunk in choice] == [None] * (len(choice) - 1) + ["length"]
    for chunk in chunks:
        assert chunk["usage"]["prompt_tokens"] == len(TEXTS[chunk["choices"][0]["index"] // 2])
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order != sorted(order)


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_is_echoed_and_scored_by_itself(synthetic_server, stream):
    """In front of its own choices, with its own logprobs and offsets."""
    body = {"prompt": PROMPTS, "max_tokens": 2, "n": 2, "echo": True, "logprobs": 1}
    if stream:
        events = await read_stream(synthetic_server.address, COMPLETIONS, body)
        choices = [chunks_of(events, index) for index in range(8)]
    else:
        choices = [[choice] for choice in post(synthetic_server, body)["choices"]]
    for choice, text in zip(choices, (text for text in TEXTS for _ in range(2)), strict=True):
        whole = text + expected(text, 2)
        assert "".join(chunk["text"] for chunk in choice) == whole
        lists = {name: [each for chunk in choice for each in chunk["logprobs"][name]] for name in choice[0]["logprobs"]}
        assert lists["tokens"] == list(whole)
        assert lists["text_offset"] == [*range(len(whole))]
        assert lists["token_logprobs"] == [None] + [0.0] * (len(whole) - 1)


def test_cached_tokens_are_summed(synthetic_server):
    """Over the prompts, each as its first choice found it."""
    long = ["summed " * 20, "another " * 30]
    body = {"prompt": long, "max_tokens": 1, "n": 2, "cache_salt": "lists"}
    alone = [post(synthetic_server, body | {"prompt": prompt}) for prompt in long for _ in range(2)]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in alone]
    assert cached[1] > 0
    assert cached[3] > 0
    together = post(synthetic_server, body)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert together == cached[1] + cached[3]


async def test_prompts_reach_the_engine_with_the_seeds_of_their_choices():
    """As if each had come alone; max_tokens is the same for all."""
    engine = RecordingEngine(ready(), token_id=ord("!"))
    async with serving(engine, MODEL) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(COMPLETIONS, json={"prompt": ["a", [98], "cd"], "n": 2, "seed": -1})
        assert answer.status_code == 200, answer.text
    submitted = [(submit.prompt, submit.sampling.seed, submit.sampling.max_tokens) for submit in engine.submitted]
    prompts = [pack_token_ids(ids) for ids in ([97], [98], [99, 100])]
    assert submitted == [(prompt, seed, 16) for prompt in prompts for seed in (-1, 0)]


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"prompt": ["a", "b", [300]]}, "prompt[2]", "300"),
        ({"prompt": ["a", []]}, "prompt[1]", "no tokens"),
        ({"prompt": ["a", 5]}, "prompt[1]", "list of token ids"),
        ({"prompt": ["a", "x" * 200]}, "prompt[1]", "100 tokens"),
        ({"prompt": ["a", "x" * 90], "max_tokens": 20}, "prompt", "110"),
        ({"prompt": ["a"] * 33, "n": 2}, "prompt", "66 choices"),
        (
            {"prompt": ["a", "b"], "stream": True, "stream_options": {"resumable": True}},
            "stream_options.resumable",
            "2",
        ),
    ],
)
async def test_one_that_is_refused_refuses_all(fields, param, word):
    """By name, and before anything runs."""
    engine = RecordingEngine(ready(), token_id=ord("!"))
    async with serving(engine, MODEL) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(COMPLETIONS, json=fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert word in error["message"]
    assert engine.submitted == []


def test_more_choices_than_the_server_holds_are_refused_before_they_are_read():
    """Their number is enough to know it."""
    error = refusal(COMPLETIONS, {"prompt": [[300]] * 65})
    assert (error.param, "65 choices" in error.message, "--max-requests" in error.message) == ("prompt", True, True)
    assert len(read(COMPLETIONS, {"prompt": ["x"] * 128}, num_rings=192).prompts) == 128
    error = refusal(COMPLETIONS, {"prompt": [[300]] * 43, "n": 3}, num_rings=192)
    assert (error.param, "129 choices" in error.message, "may have 128" in error.message) == ("prompt", True, True)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_all_of_them(start_server, stream):
    """Each prompt's choices are sequences of their own."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "5") as server:
        async with Client(server.address) as client:
            body = {"prompt": PROMPTS, "max_tokens": 8000, "n": 2, "stream": stream}
            _, writer = await client.send(COMPLETIONS, body)
            await until_rings(server, 8)
            writer.transport.abort()
            await until_rings(server, 0)
            await check_idle(client, server)


def test_the_official_client(synthetic_server):
    """openai-python sends lists of both kinds, and reads the choices, streamed and not."""
    with openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(model="synthetic", prompt=["one", "three"], max_tokens=4)
        assert [choice.text for choice in whole.choices] == [expected("one", 4), expected("three", 4)]
        ids = client.completions.create(model="synthetic", prompt=[[111, 110, 101], [116]], max_tokens=4)
        assert [choice.text for choice in ids.choices] == [expected("one", 4), expected("t", 4)]
        texts = ["", ""]
        for chunk in client.completions.create(model="synthetic", prompt=["one", "t"], max_tokens=9, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [expected("one", 9), expected("t", 9)]
