"""Messages and Responses of a running server: what holds for both. Real processes, real sockets."""

from __future__ import annotations

import asyncio
import itertools

import httpx
import pytest

from tests.raw_client import CHAT, Client
from tests.server.protocols.dialects_parts import (
    HI_PROMPT,
    MESSAGES,
    OF_MESSAGES,
    OF_RESPONSES,
    RESPONSES,
    parse_events,
    read_events,
)
from tests.server.server_parts import PATIENCE, check_idle, counters, expected, rings_in_use, until_rings

pytestmark = pytest.mark.anyio

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1"]
BOTH = pytest.mark.parametrize("words", [OF_MESSAGES, OF_RESPONSES], ids=["messages", "responses"])
PAST = "2001-01-01T00:00:00Z"
LONG = 8000  # tokens: longer than any of these tests


KINDS = {  # by status, of Anthropic's protocol and of OpenAI's
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "invalid_request_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "invalid_request_error"),
    413: ("request_too_large", "invalid_request_error"),
    415: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    503: ("overloaded_error", "server_error"),
}


async def post(server, path, body, **headers):
    """An answer that is not streamed."""
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        return await client.post(path, json=body, headers={name.replace("_", "-"): headers[name] for name in headers})


def text_of(answer):
    """The text of a whole answer of either kind."""
    [part] = answer["content"] if "content" in answer else answer["output"][0]["content"]
    return part["text"]


def check_refusal(words, answer, status, says):
    """It has this status, the kind that belongs to it, and a sentence with these words."""
    assert answer.status_code == status, answer.text
    kind, message = words.error(answer.json())
    assert kind == KINDS[status][words is OF_RESPONSES]
    assert says in message
    if words is OF_MESSAGES:
        assert answer.json()["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


@BOTH
async def test_one_event_for_each_token_which_the_drain_writes(synthetic_server, words):
    """The text is the model's, and none of its tokens takes the way through Python."""
    before = counters(synthetic_server)["direct_tokens"]
    async with Client(synthetic_server.address) as client:
        events = await read_events(client, words.path, words.body(64))
    deltas = [words.delta_text(event) for event in events if event.name == words.delta]
    assert deltas == list(expected(HI_PROMPT, 64))
    assert events[-1].name == words.last
    assert counters(synthetic_server)["direct_tokens"] - before >= 64


@BOTH
async def test_a_stream_through_python_has_the_same_events(synthetic_server, words):
    """As one with a stop string that never comes; only its name differs."""
    stops = {"stop_sequences": ["\x00"]} if words is OF_MESSAGES else {"stop": ["\x00"]}
    async with Client(synthetic_server.address) as client:
        natively = await read_events(client, words.path, words.body(20))
        in_python = await read_events(client, words.path, words.body(20, **stops))
    assert [event.name for event in in_python] == [event.name for event in natively]
    assert words.text(in_python) == words.text(natively) == expected(HI_PROMPT, 20)


@BOTH
async def test_the_whole_answer_is_what_the_stream_says(synthetic_server, words):
    """In one body, with the same text and the same usage."""
    answer = await post(synthetic_server, words.path, words.body(20))
    assert answer.status_code == 200
    assert text_of(answer.json()) == expected(HI_PROMPT, 20)


@BOTH
async def test_a_client_that_leaves_frees_its_ring(synthetic_server, words):
    """In mid-stream, and while it waits for a whole answer."""
    async with Client(synthetic_server.address) as client:
        stream = await client.open(words.path, words.body(LONG, stream=True))
        await anext(stream.chunks())
        stream.abort()
        _, waiting = await client.send(words.path, words.body(LONG))
        while await rings_in_use(synthetic_server) == 0:
            pass
        waiting.transport.abort()
        await check_idle(client, synthetic_server)


@BOTH
async def test_an_engine_that_dies(start_server, words):
    """A stream has its tokens and ends with the protocol's own error; a whole answer is a 503 with its envelope."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "20") as server:
        async with Client(server.address) as client:
            waiting = asyncio.ensure_future(post(server, words.path, words.body(LONG)))
            stream = await client.open(words.path, words.body(LONG, stream=True))
            chunks = stream.chunks()
            received = b""
            while words.delta.encode() not in received:
                received += await anext(chunks)
            await until_rings(server, 2)
            server.engine.kill()
            received += b"".join([chunk async for chunk in chunks])
            *events, failed = parse_events(received)
            assert words.text(events) == expected(HI_PROMPT, len(words.text(events)))
            assert failed.name == words.failed
            if words is OF_RESPONSES:
                assert failed.data["sequence_number"] == len(events)
                assert failed.data["response"]["status"] == "failed"
                assert failed.data["response"]["error"]["code"] == "server_error"
                message = failed.data["response"]["error"]["message"]
            else:
                kind, message = words.error(failed.data)
                assert kind == "overloaded_error"
            assert message == "The engine process died before this request was finished."
            answer = await waiting
    check_refusal(words, answer, 503, message)
    assert answer.headers["retry-after"] == "1"


@pytest.fixture(scope="module")
def strict_server(start_server):
    """A server with keys, and with small limits."""
    limits = ["--max-requests-per-key", "1", "--max-body-mib", "1"]
    return start_server(*SYNTHETIC, "--api-key", "alice", "--api-key", "bob", *limits)


@BOTH
def test_refusals_have_the_envelope_of_their_protocol(strict_server, words):
    """Whoever refuses: the door, the route, the body, the fields or the model."""
    ask = httpx.Client(base_url=strict_server.url, timeout=PATIENCE, headers={"x-api-key": "alice"})
    long = words.body(messages=[{"role": "user", "content": "x" * 9000}])
    with ask:
        for status, says, answer in [
            (401, "API key", ask.post(words.path, json=words.body(), headers={"x-api-key": "eve"})),
            (403, "does not answer to the name", ask.post(words.path, json=words.body(), headers={"Host": "evil"})),
            (404, "'other'", ask.post(words.path, json=words.body(model="other"))),
            (404, "no route", ask.post(f"{words.path}/more", json={})),
            (405, "does not take GET", ask.get(words.path)),
            (413, "larger than", ask.post(words.path, json=words.body(user="x" * 2**20))),
            (415, "application/json", ask.post(words.path, content=b"{}", headers={"Content-Type": "text/plain"})),
            (400, "not valid JSON", ask.post(words.path, content=b"{", headers={"Content-Type": "application/json"})),
            (400, "maximum context length is 8192", ask.post(words.path, json=long)),
            (408, "deadline", ask.post(words.path, json=words.body(), headers={"X-Request-Deadline": PAST})),
        ]:
            check_refusal(words, answer, status, says)


@BOTH
async def test_a_key_at_its_limit(strict_server, words):
    """429 in the protocol's envelope, with the seconds to wait, while the other key's request is answered."""
    async with Client(strict_server.address) as client:
        held = await client.open(words.path, words.body(LONG, stream=True), "x-api-key: alice")
        assert held.status == 200
        refused = await post(strict_server, words.path, words.body(), x_api_key="alice")
        check_refusal(words, refused, 429, "key")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert (await post(strict_server, words.path, words.body(), Authorization="Bearer bob")).status_code == 200
        held.abort()
        await until_rings(strict_server, 0)


@BOTH
async def test_cached_tokens_are_in_the_usage(synthetic_server, words):
    """In a stream, through Python or not, and in a whole answer; whole blocks of 16 tokens are found again."""
    prompt = f"{words.path} has a prompt that is long enough to be cached, so that it is found again." * 2
    messages = [{"role": "user", "content": prompt}]
    total = len(f"user: {prompt}\nassistant: ")
    cached = (total - 1) // 16 * 16
    stops = {"stop_sequences": ["\x00"]} if words is OF_MESSAGES else {"stop": ["\x00"]}
    found = []
    async with Client(synthetic_server.address) as client:
        for more in ({}, {}, stops):
            events = await read_events(client, words.path, words.body(3, messages, **more))
            found.append(events[-2].data["usage"] if words is OF_MESSAGES else events[-1].data["response"]["usage"])
        found.append((await post(synthetic_server, words.path, words.body(3, messages))).json()["usage"])
    for usage, number in zip(found, itertools.chain([0], itertools.repeat(cached)), strict=False):
        if words is OF_MESSAGES:
            assert usage == {
                "input_tokens": total - number,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": number,
                "output_tokens": 3,
            }
        else:
            assert usage == {
                "input_tokens": total,
                "input_tokens_details": {"cached_tokens": number, "cache_write_tokens": 0},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": total + 3,
            }


@BOTH
async def test_advisory_fields_are_accepted_and_named(synthetic_server, words):
    """In the Warning header of a stream and of a whole answer."""
    body = words.body(service_tier="auto")
    answer = await post(synthetic_server, words.path, body)
    assert answer.headers["warning"] == '299 - "ignored: service_tier"'
    async with Client(synthetic_server.address) as client:
        stream = await client.open(words.path, body | {"stream": True})
    assert stream.headers["warning"] == '299 - "ignored: service_tier"'


async def test_every_protocol_asks_the_model_the_same(default_server):
    """The most likely answer to a chat is the same text, and ends for the same reason, whichever protocol asks."""
    turns = [
        {"role": "user", "content": "What is the capital of France?<|im_end|>"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    system, sampling = "Answer in one word.", {"temperature": 0}
    chat = [{"role": "system", "content": system}, *turns]
    asked = await post(default_server, CHAT, {"messages": chat, "max_tokens": 60} | sampling)
    [choice] = asked.json()["choices"]
    messages = await post(default_server, MESSAGES, OF_MESSAGES.body(60, turns, system=system, **sampling))
    responses = await post(default_server, RESPONSES, OF_RESPONSES.body(60, turns, instructions=system, **sampling))
    texts = [text_of(messages.json()), text_of(responses.json())]
    async with Client(default_server.address) as client:
        for words, more in ((OF_MESSAGES, {"system": system}), (OF_RESPONSES, {"instructions": system})):
            texts.append(words.text(await read_events(client, words.path, words.body(60, turns, **more, **sampling))))
    assert texts == [choice["message"]["content"]] * 4
    assert choice["finish_reason"] == "stop"
    assert messages.json()["stop_reason"] == "end_turn"
    assert responses.json()["status"] == "completed"
    usage = asked.json()["usage"]
    assert responses.json()["usage"]["input_tokens"] == usage["prompt_tokens"]
    assert [answer.json()["usage"]["output_tokens"] for answer in (messages, responses)] == [
        usage["completion_tokens"]
    ] * 2
