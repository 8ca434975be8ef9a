"""What of an Anthropic request is taken, left out or refused, without a server."""

from __future__ import annotations

import json
from functools import partial

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.anthropic.conversation import read_conversation
from rbee.server.protocols.anthropic.reader import MessagesReader
from rbee.server.protocols.fields import FieldReader
from rbee.server.protocols.generating import Arrival
from rbee.server.streams.live import KEEP_ALIVE_SILENCE
from rbee.server.streams.outcome import Outcome
from tests.server.protocols.dialects_parts import HI, HI_PROMPT, make_messages_dialect, parse_events
from tests.server.protocols.parameters_parts import MODEL, ready
from tests.server.streams.streams_parts import PATIENCE, StreamedCase, moment_of

BILLING = "x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch=12345;"


def read(*, lenient=False, **fields):
    """What these fields ask for, of a model with a length of 100 tokens."""
    reader = MessagesReader(MODEL, num_rings=64, ring_capacity=1024, lenient=lenient)
    body = json.dumps({"messages": HI, "max_tokens": 5} | fields).encode()
    return reader.read(body, Arrival("r", [], 0, ready()))


def ended(reason):
    """How a stream has ended."""
    outcome = Outcome(0)
    outcome.reason = reason
    return outcome


def conversation(system="", turns=HI):
    """The messages for the chat template."""
    return read_conversation(system, turns, FieldReader(lenient=False))


def test_parameters_reach_the_engine():
    """Anthropic's under their names, and rbee's own."""
    generation = read(temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["a", "b"], seed=7, min_p=0.1).generation
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 5, 7)
    assert (sampling.min_p, sampling.max_tokens, generation.stops) == (0.1, 5, ["a", "b"])
    assert MODEL.codec.decode(generation.prompt) == HI_PROMPT


FORMAT = {"type": "json_schema", "schema": {"type": "object"}}


@pytest.mark.parametrize("fields", [{"output_format": FORMAT}, {"output_config": {"format": FORMAT}}])
def test_a_form_has_no_prefill(fields):
    """The answer would be a whole object behind it; the message names both. Other answers go on with a prefill."""
    turns = [*HI, {"role": "assistant", "content": "{"}]
    assert read(**fields).generation.grammar
    assert not read(messages=turns, output_config={"format": {"type": "text"}}).generation.grammar
    with pytest.raises(Refusal) as caught:
        read(messages=turns, **fields)
    assert (caught.value.param, status_of(caught.value)) == (f"messages[{len(HI)}]", 400)
    assert next(iter(fields)) in caught.value.message


@pytest.mark.parametrize("max_tokens", [100 - len(HI_PROMPT), 101 - len(HI_PROMPT), 2**31 - 1])
def test_an_answer_may_fill_the_context(max_tokens):
    """A larger max_tokens than there is room is cut, and the end then says what ended the answer."""
    asked = read(max_tokens=max_tokens)
    room = 100 - len(HI_PROMPT)
    assert asked.generation.sampling.max_tokens == room
    [_, delta, _] = parse_events(asked.dialect.finish(ended(FinishReason.LENGTH)))
    reason = "max_tokens" if max_tokens == room else "model_context_window_exceeded"
    assert delta.data["delta"]["stop_reason"] == reason


def test_a_deadline_has_a_word_of_its_own():
    """Anthropic has none for it."""
    [_, delta, _] = parse_events(make_messages_dialect().finish(ended(FinishReason.DEADLINE)))
    assert delta.data["delta"] == {"stop_reason": "deadline", "stop_sequence": None}


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("be brief", "be brief"),
        ([{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}], "be\nbrief"),
        (f"{BILLING}\nbe brief", "be brief"),
        (f"be brief\n{BILLING}\nand kind", "be brief\nand kind"),
        (f"be brief\n{BILLING}", "be brief\n"),
        ([{"type": "text", "text": BILLING}, {"type": "text", "text": "be brief"}], "be brief"),
        (BILLING.upper() + "\nbe brief", "be brief"),
        (f"never send {BILLING}", f"never send {BILLING}"),
    ],
)
def test_system_prompts(system, expected):
    """Blocks are joined by line breaks; lines that change with each request are left out, and nothing else is."""
    assert conversation(system) == [{"role": "system", "content": expected}, *HI]


@pytest.mark.parametrize("system", ["", [], BILLING, [{"type": "text", "text": BILLING}]])
def test_no_system_prompt_is_no_message(system):
    """Neither is one of which nothing is left."""
    assert conversation(system) == HI


def test_turns_in_a_row_of_one_role_are_one_message():
    """In both roles, blocks or not."""
    turns = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "system", "content": "f"},
        {"role": "user", "content": "g"},
    ]
    assert conversation(turns=turns) == [
        {"role": "user", "content": "a\nb\nc"},
        {"role": "assistant", "content": "d\ne"},
        {"role": "system", "content": "f"},
        {"role": "user", "content": "g"},
    ]


def test_what_clients_send_back_is_taken():
    """A whole Message as a turn, as the client has it, and blocks with marks for a cache."""
    reader = FieldReader(lenient=False)
    turn = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "stop_sequence": None, "usage": {"input_tokens": 1},
        "content": [{"type": "text", "text": "b", "citations": None, "cache_control": {"type": "ephemeral"}}],
    }  # fmt: skip
    messages = read_conversation("", [*HI, turn, {"role": "user", "content": "c"}], reader)
    assert [message["content"] for message in messages] == ["hi", "b", "c"]
    names = ["id", "model", "stop_reason", "usage", "content[0].cache_control"]
    assert reader.ignored == [f"messages[1].{name}" for name in names]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": None}, "max_tokens is missing"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"messages": []}, "messages must hold at least one message"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content is missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be one of user, assistant, system, not 'tool'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            r"messages\[0\].content\[0\].text is missing",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, r"content\[0\].type must be 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image': this model reads text only"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id is missing"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            "this server runs no tools",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking"}]}]}, "thinking is missing"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, r"Unknown field messages\[0\].name"),
        ({"system": [{"type": "image"}]}, r"system\[0\].type must be 'text'"),
        ({"system": 3}, "system has a wrong type"),
        ({"stop_sequences": [""]}, "Each of stop_sequences must have"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences holds 65 strings"),
        ({"tools": [{"name": "t"}]}, r"tools\[0\].input_schema is missing"),
        ({"tool_choice": {"type": "any"}}, "there are no tools"),
        ({"thinking": {"type": "often"}}, "thinking.type must be one of enabled, adaptive, disabled"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is missing"),
        ({"mcp_servers": [{}]}, "mcp_servers is not supported yet"),
        ({"max_token": 5}, "Unknown field max_token. Did you mean max_tokens?"),
        ({"n": 2}, "Unknown field n"),
        ({"stop": ["x"]}, "Unknown field stop. Did you mean stop_sequences?"),
        ({"stream_options": {}}, "Unknown field stream_options"),
    ],
    ids=str,
)
def test_refused_by_name(fields, says):
    """With the remedy, and as Anthropic's own API does: 400."""
    with pytest.raises(Refusal, match=says) as caught:
        read(**fields)
    assert status_of(caught.value) == 400


def test_what_asks_for_nothing_is_taken():
    """As clients send it that leave nothing out."""
    nothing = {"tools": [], "tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"}, "mcp_servers": []}
    assert read(**nothing, container=None, output_config={}, stop_sequences=None, system=None).generation


def test_a_lenient_server_ignores_unknown_fields():
    """Those of another protocol, and those without which the answer is of the same kind; the Warning header says so."""
    dialect = read(lenient=True, n=2, novelty=1, inference_geo="us", speed="fast").dialect
    assert dict(dialect.answer_headers)[b"warning"] == b'299 - "ignored: n, novelty, inference_geo, speed"'
    with pytest.raises(Refusal, match="mcp_servers is not supported yet"):
        read(lenient=True, mcp_servers=[{"name": "t"}])


@pytest.mark.anyio
async def test_a_silent_stream_has_pings():
    """Anthropic's own keep-alive, after the beginning and between two tokens."""
    case = StreamedCase(dialect=make_messages_dialect())
    begun = moment_of(lambda: None)
    for token, reason in [(b"a", 0), (b"b", FinishReason.LENGTH)]:
        case.reply.check(begun.after(KEEP_ALIVE_SILENCE), PATIENCE)
        begun = moment_of(partial(case.deliver, token, reason))
    names = [event.name for event in parse_events(case.written())]
    assert names == [
        "message_start", "content_block_start", "ping",
        "ping", "content_block_delta", "ping", "content_block_delta",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
