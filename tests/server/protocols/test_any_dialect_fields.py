"""Messages and Responses requests of any fields: each is taken, or refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.anthropic import schemas as messages
from rbee.server.protocols.anthropic.reader import MessagesReader
from rbee.server.protocols.generating import Arrival
from rbee.server.protocols.parameters import ADVISORY_OF_PEERS
from rbee.server.protocols.responses import schemas as responses
from rbee.server.protocols.responses.reader import ResponsesReader
from tests.server.protocols.dialects_parts import HI
from tests.server.protocols.parameters_parts import JSON, MODEL, ready

ROUTES = {
    "messages": (
        MessagesReader,
        {"messages": HI, "max_tokens": 5},
        [*messages.MessagesRequest.__struct_fields__, *messages.NEUTRAL, *messages.ADVISORY],
        [*messages.Turn.__struct_fields__, *messages.ADVISORY_TURN, *messages.NEUTRAL_TURN],
        [
            *messages.TextBlock.__struct_fields__,
            *messages.ADVISORY_BLOCK,
            "id",
            "name",
            "input",
            "tool_use_id",
            "content",
        ],
        ["text", "tool_use", "tool_result", "thinking", "image"],
    ),
    "responses": (
        ResponsesReader,
        {"input": "hi"},
        [*responses.ResponsesRequest.__struct_fields__, *responses.NEUTRAL, *responses.STATEFUL, *responses.ADVISORY],
        [*responses.Item.__struct_fields__, *responses.ADVISORY_ITEM, "call_id", "name", "arguments", "output"],
        [*responses.TextPart.__struct_fields__, *responses.ADVISORY_PART],
        ["message", "input_text", "function_call", "function_call_output", "reasoning", "item_reference"],
    ),
}


def objects(names, values):
    """Objects with these fields and others."""
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=5), values, max_size=5)


def outcome(reader, body):
    """What comes of a request."""
    try:
        return reader.read(json.dumps(body).encode(), Arrival("r", [], 0, ready()))
    except Refusal as refusal:
        return refusal


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("lenient", [False, True])
@given(data=st.data())
def test_any_object_is_taken_or_refused(route, lenient, data):
    """Turns, blocks and parts of all kinds too: there is an answer, or a 400 whose sentence is short."""
    make_reader, least, fields, turn_fields, block_fields, kinds = ROUTES[route]
    blocks = objects(block_fields, JSON | st.sampled_from(kinds))
    turns = objects(turn_fields, JSON | st.sampled_from(["user", "assistant", *kinds]) | st.lists(blocks, max_size=2))
    body = least | data.draw(objects(fields, JSON | st.lists(turns, max_size=3) | st.lists(blocks, max_size=2)))
    result = outcome(make_reader(MODEL, num_rings=64, ring_capacity=1024, lenient=lenient), body)
    if isinstance(result, Refusal):
        assert status_of(result) in (400, 404, 408)
        assert result.param is not None
        assert len(result.message) < 400
    else:
        assert result.dialect.begin().endswith(b"\n\n")
        assert len(dict(result.dialect.stream_headers).get(b"warning", b"")) < 1024


@pytest.mark.parametrize("route", ROUTES)
def test_fields_of_peers_are_advisory(route):
    """Clients of llama.cpp and vLLM send them on every route; they are taken, and named in the Warning header."""
    make_reader, least, *_ = ROUTES[route]
    peers: Any = {"cache_prompt": True, "id_slot": 3, "request_id": "r", "timings_per_token": True}
    assert peers.keys() == ADVISORY_OF_PEERS
    result = outcome(make_reader(MODEL, num_rings=64, ring_capacity=1024, lenient=False), least | peers)
    warning = dict(result.dialect.answer_headers)[b"warning"].decode()
    assert warning == f'299 - "ignored: {", ".join(peers)}"'
