"""Logprobs of Responses: which texts and events list them, and as OpenAI's own client reads them."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from openai.types.responses import Response

from rbee.messages import FinishReason
from rbee.server.streams.outcome import Outcome
from rbee.server.streams.pieces import CollectedChoice, Part, Piece
from rbee.server.streams.records import TokenLogprob
from rbee.server.text.output import OutputKind
from tests.raw_client import Client
from tests.server.protocols.dialects_parts import (
    HI_PROMPT,
    OF_RESPONSES,
    RESPONSES,
    make_responses_dialect,
    parse_events,
    read_events,
)
from tests.server.server_parts import PATIENCE, expected
from tests.server.streams.tagged_output import PLAN

pytestmark = pytest.mark.anyio

TEXT = expected(HI_PROMPT, 3)
INCLUDE = {"include": ["message.output_text.logprobs"]}


def token(character, logprob=0.0):
    """As an answer lists a token of the synthetic model."""
    return {"token": character, "logprob": logprob, "bytes": list(character.encode())}


def listed(character, *top):
    """The same with the most likely ones at its place."""
    return token(character) | {"top_logprobs": list(top)}


def post(server, body):
    """The JSON of a whole answer."""
    return httpx.post(server.url + RESPONSES, json=body, timeout=PATIENCE).json()


def lists_of(response):
    """The `logprobs` of each part of a response."""
    return [part["logprobs"] for item in response["output"] for part in item.get("content", ()) if "logprobs" in part]


@pytest.mark.parametrize("fields", [INCLUDE, {"top_logprobs": 1}, INCLUDE | {"top_logprobs": 1}], ids=str)
async def test_each_token_of_the_text(synthetic_server, fields):
    """Streamed, each with its delta, and all of them with what repeats the text; in the whole answer the same."""
    body = OF_RESPONSES.body(3, **fields)
    async with Client(synthetic_server.address) as client:
        events = await read_events(client, RESPONSES, body)
    number = fields.get("top_logprobs", 0)
    tokens = [listed(character, *[token(character)][:number]) for character in TEXT]
    told = {event.name: event.data for event in events}
    assert [event.data["logprobs"] for event in events if event.name == OF_RESPONSES.delta] == [[one] for one in tokens]
    assert told["response.content_part.added"]["part"]["logprobs"] == []
    assert told["response.output_text.done"]["logprobs"] == tokens
    assert told["response.content_part.done"]["part"]["logprobs"] == tokens
    assert told["response.output_item.done"]["item"]["content"][0]["logprobs"] == tokens
    answer = post(synthetic_server, body)
    for response in (told["response.incomplete"]["response"], answer):
        assert lists_of(response) == [tokens]
        assert response["top_logprobs"] == number
        Response.model_validate(response, strict=True)


async def test_nobody_asked(synthetic_server):
    """The lists are there, and empty."""
    async with Client(synthetic_server.address) as client:
        *events, last = await read_events(client, RESPONSES, OF_RESPONSES.body(3))
    assert lists_of(last.data["response"]) == [[]]
    assert [event.data["logprobs"] for event in events if event.name == OF_RESPONSES.delta] == [[]] * 3


def test_the_client_reads_them(synthetic_server):
    """Its helper adds up the events of a stream."""
    with openai.OpenAI(base_url=synthetic_server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE) as ours:
        with ours.responses.stream(
            model="synthetic", input="hi", max_output_tokens=3, top_logprobs=2, include=["message.output_text.logprobs"]
        ) as stream:
            events = list(stream)
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert "".join(entry.token for event in deltas for entry in event.logprobs) == TEXT
        assert [len(entry.top_logprobs or []) for event in deltas for entry in event.logprobs] == [2, 2, 2]
        whole = ours.responses.create(model="synthetic", input="hi", max_output_tokens=3, top_logprobs=2)
    [message] = whole.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert [(entry.token, entry.logprob) for entry in part.logprobs or ()] == [(character, 0.0) for character in TEXT]


PARTS = [Part(OutputKind.REASONING, "r"), Part(OutputKind.TEXT, "a"), Part(OutputKind.TOOL_ARGUMENTS, "{}", "f")]
PARTS += [Part(OutputKind.TEXT, "b")]


def piece(kind, text, part, *characters, ended=None, num_calls=0):
    """A piece that lists these tokens."""
    entries = [TokenLogprob(ord(character), 0.0, [], 0) for character in characters]
    return Piece(text, 1, 1, entries, kind, num_calls, part, ended)


PIECES = [
    piece(OutputKind.REASONING, "r", 0, "r"),
    piece(OutputKind.TEXT, "a", 1, ">", "a", ended=PARTS[0]),
    piece(OutputKind.TOOL_NAME, "f", 2, "f", ended=PARTS[1], num_calls=1),
    piece(OutputKind.TOOL_ARGUMENTS, "{}", 2, "{", num_calls=1),
    piece(OutputKind.TEXT, "b", 3, "b", ended=PARTS[2], num_calls=1),
]
LAST = piece(OutputKind.TEXT, "", 3, ".", num_calls=1)  # a stop token, which shows nothing


async def test_of_an_output_that_is_parsed():
    """Each text lists its own tokens; those of reasoning and of calls have no list in this protocol."""
    dialect = make_responses_dialect(plan=PLAN, num_logprobs=0)
    stream = dialect.begin() + b"".join(dialect.piece(0, each, number) for number, each in enumerate(PIECES))
    stream += dialect.end(0, LAST, len(PIECES), FinishReason.STOP)
    outcome = Outcome(0)
    outcome.reason, outcome.parsed, outcome.num_frames = FinishReason.STOP, PARTS, len(PIECES)
    events = parse_events(stream + dialect.finish(outcome))
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    first, last = [listed(">"), listed("a")], [listed("b"), listed(".")]
    assert [event.data["logprobs"] for event in events if event.name == OF_RESPONSES.delta] == [first, last[:1]]
    assert [event.data["logprobs"] for event in events if event.name == "response.output_text.done"] == [first, last]
    response = events[-1].data["response"]
    assert lists_of(response) == [first, last]
    collected = CollectedChoice([*PIECES, LAST], FinishReason.STOP, parsed=PARTS)
    answer = json.loads(make_responses_dialect(plan=PLAN, num_logprobs=0).answer([collected], outcome))
    assert lists_of(answer) == [first, last]


async def test_a_text_that_looks_like_the_empty_list():
    """The list of an event is filled, not what its text says."""
    dialect = make_responses_dialect(num_logprobs=0)
    [delta] = parse_events(dialect.piece(0, piece(OutputKind.TEXT, "[]", 0, "[", "]"), 0))
    assert delta.data["delta"] == "[]"
    assert delta.data["logprobs"] == [listed("["), listed("]")]
