"""What of a Responses request is taken, left out or refused, without a server."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.fields import FieldReader
from rbee.server.protocols.generating import Arrival
from rbee.server.protocols.responses.conversation import read_input
from rbee.server.protocols.responses.reader import ResponsesReader
from rbee.server.streams.outcome import Outcome
from rbee.server.text.chat_template import ChatTemplate
from tests.server.protocols.dialects_parts import HI, HI_PROMPT, make_responses_dialect, parse_events
from tests.server.protocols.parameters_parts import MODEL, ready


def read(*, lenient=False, model=MODEL, **fields):
    """What these fields ask for, of a model with a length of 100 tokens."""
    reader = ResponsesReader(model, num_rings=64, ring_capacity=1024, lenient=lenient)
    return reader.read(json.dumps({"input": "hi"} | fields).encode(), Arrival("r", [], 0, ready()))


def messages(given, instructions=None):
    """The messages for the chat template."""
    return read_input(instructions, given, FieldReader(lenient=False))


def test_parameters_reach_the_engine():
    """OpenAI's under their names, and rbee's own."""
    generation = read(temperature=0.5, top_p=0.9, max_output_tokens=7, seed=3, top_k=5, stop="x").generation
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed) == (0.5, 0.9, 7, 3)
    assert (sampling.top_k, generation.stops) == (5, ["x"])
    assert MODEL.codec.decode(generation.prompt) == HI_PROMPT
    assert read().generation.sampling.max_tokens == 100 - len(HI_PROMPT)


def test_input_items():
    """A text, messages with and without a type, parts, and the instructions before all of them."""
    assert messages("hi") == HI
    items = [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}] * 2},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]},
        {"role": "user", "content": "d"},
    ]
    assert messages(items, "first") == [
        {"role": "system", "content": "first"},
        {"role": "developer", "content": "a"},
        {"role": "user", "content": "b\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]


def test_what_clients_send_back_is_taken():
    """An output item as it was."""
    reader = FieldReader(lenient=False)
    part = {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert read_input(None, [*HI, item], reader)[1] == {"role": "assistant", "content": "b"}
    names = ["id", "status", "content[0].annotations", "content[0].logprobs"]
    assert reader.ignored == [f"input[1].{name}" for name in names]


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": None}, "input", "input is missing"),
        ({"input": []}, "input", "at least one item"),
        ({"input": ["x"]}, "input[0]", "wrong type"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
        ({"input": [{"role": "boss", "content": "x"}]}, "input[0].role", "must be one of user, system"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "text only"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "is missing"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "calls of functions only"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "stores no items"),
        ({"input": [{"type": "novelty"}]}, "input[0].type", "must be 'message', 'function_call'"),
        ({"background": True}, "background", "stores no responses"),
        ({"conversation": "x"}, "conversation", "stores no responses"),
        ({"previous_response_id": "x"}, "previous_response_id", "as input again"),
        ({"prompt": {"id": "x"}}, "prompt", "stores no responses"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"max_tokens": 5}, "max_tokens", "Did you mean max_output_tokens"),
        ({"n": 2}, "n", "Unknown field n"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "runs no tools of its own"),
        ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", "wrong type"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "not supported"),
        ({"text": {"form": 1}}, "text.form", "Unknown field"),
        ({"truncation": "auto"}, "truncation", "not supported yet"),
        ({"include": ["file_search_call.results"]}, "include[0]", "not supported yet"),
        ({"top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "it is the server's"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "when stream is true"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage", "Unknown field"),
    ],
    ids=str,
)
def test_refused_by_name(fields, param, says):
    """With the remedy."""
    with pytest.raises(Refusal, match=says) as caught:
        read(**fields)
    assert (status_of(caught.value), caught.value.param) == (400, param)


def test_a_state_is_refused_by_a_lenient_server_too():
    """The answer would be another one."""
    with pytest.raises(Refusal, match="previous_response_id"):
        read(lenient=True, previous_response_id="resp_1")


def test_a_lenient_server_ignores_what_leaves_the_answer_of_its_kind():
    """And says so in the Warning header; another form of the text does not."""
    dialect = read(lenient=True, truncation="auto", novelty=1).dialect
    assert dict(dialect.answer_headers)[b"warning"] == b'299 - "ignored: truncation, novelty"'
    with pytest.raises(Refusal, match="not supported"):
        read(lenient=True, text={"format": {"type": "grammar"}})


def test_what_the_template_refuses_is_in_the_input():
    """The template itself calls them messages."""
    template = ChatTemplate("{{ raise_exception('no') }}", {})
    with pytest.raises(Refusal, match="refuses these messages: no") as caught:
        read(model=dataclasses.replace(MODEL, chat_template=template))
    assert caught.value.param == "input"


def test_what_asks_for_nothing_is_taken():
    """As clients send it that leave nothing out."""
    nothing = {"tools": [], "tool_choice": "auto", "truncation": "disabled", "background": False, "include": None}
    asked = read(**nothing, reasoning={"effort": None, "summary": None}, text={"format": {"type": "text"}}, user=None)
    assert b"warning" not in dict(asked.dialect.answer_headers)


def test_advisory_fields_are_named():
    """Those of parts of the request too; there is no state that `store` could change."""
    advisory = {"store": True, "service_tier": "flex", "prompt_cache_key": "k", "max_tool_calls": 3}
    nested = {
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"verbosity": "low"},
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    asked = read(**advisory, **nested, include=["reasoning.encrypted_content"])
    names = "store, service_tier, prompt_cache_key, max_tool_calls, text.verbosity"
    expected = f'299 - "ignored: {names}, stream_options.include_obfuscation, reasoning.summary, reasoning.effort"'
    assert dict(asked.dialect.stream_headers)[b"warning"].decode() == expected


def test_a_deadline_has_a_word_of_its_own():
    """OpenAI has none for it."""
    outcome = Outcome(0)
    outcome.reason = FinishReason.DEADLINE
    last = parse_events(make_responses_dialect().finish(outcome))[-1]
    assert last.name == "response.incomplete"
    assert last.data["response"]["incomplete_details"] == {"reason": "deadline"}
