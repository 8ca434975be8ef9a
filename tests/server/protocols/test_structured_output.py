"""Structured outputs of a running server, in every protocol; with what else a request may ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import httpx
import openai
import psutil
import pytest
from pydantic import BaseModel, Field

from tests.raw_client import CHAT, COMPLETIONS, read_stream
from tests.server.server_parts import expected

if TYPE_CHECKING:
    from tests.conftest import Server

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    """What is asked for; bounded, as the synthetic model ends no text by itself."""

    name: str = Field(max_length=6)
    kind: Literal["cat", "dog"]
    tags: list[Literal["a", "b"]] = Field(max_length=2)


SCHEMA = Person.model_json_schema() | {"additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


def post(server: Server, path: str, body: dict[str, Any], status: int = 200) -> Any:
    """The answer."""
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json()


def test_the_client_parses_what_it_asked_for(synthetic_server):
    """openai-python's own helper, of a chat and of Responses: a pydantic model in, one out."""
    with openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.parse(
            model="synthetic", messages=[{"role": "user", "content": "hi"}], response_format=Person, max_tokens=300
        )
        response = client.responses.parse(
            model="synthetic", input="hi", text_format=Person, max_output_tokens=300, temperature=1
        )
    assert isinstance(chat.choices[0].message.parsed, Person)
    assert chat.choices[0].finish_reason == "stop"
    assert isinstance(response.output_parsed, Person)
    assert response.status == "completed"
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


def test_messages(synthetic_server):
    """In both places; the official client sends one of them."""
    with anthropic.Anthropic(base_url=synthetic_server.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(
            model="synthetic",
            max_tokens=300,
            messages=[{"role": "user", "content": "hi"}],
            output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        )
    [block] = message.content
    assert block.type == "text"
    Person.model_validate_json(block.text)
    assert message.stop_reason == "end_turn"
    body = {"messages": HI, "max_tokens": 300, "output_format": {"type": "json_schema", "schema": SCHEMA}}
    [content] = post(synthetic_server, "/v1/messages", body)["content"]
    Person.model_validate_json(content["text"])


async def test_a_stream_is_the_answer_piece_by_piece(synthetic_server):
    """The same seed: the same text, and `stop`, whether the native drain writes it or Python."""
    body: dict[str, Any] = {"messages": HI, "max_tokens": 300, "response_format": FORMAT, "seed": 5}
    whole = post(synthetic_server, CHAT, body)["choices"][0]
    for further in ({}, {"stop": ["\x00"]}, {"logprobs": True}):
        *chunks, done = await read_stream(synthetic_server.address, CHAT, body | further)
        assert done == "[DONE]"
        pieces = [choice for chunk in chunks for choice in chunk["choices"]]
        assert "".join(piece["delta"]["content"] for piece in pieces) == whole["message"]["content"]
        assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    Person.model_validate_json(whole["message"]["content"])


def test_with_what_else_a_request_may_ask_for(synthetic_server):
    """Several prompts and choices, logprobs of the model, an echo; a prompt that is cached."""
    body = {"prompt": ["x" * 40, "y"], "n": 2, "max_tokens": 300, "response_format": FORMAT, "seed": 9}
    first, second = (post(synthetic_server, COMPLETIONS, body) for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert [choice["text"] for choice in second["choices"]] == texts
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert len(set(texts)) > 2
    for text in texts:
        Person.model_validate_json(text)

    body = {"prompt": "ab", "max_tokens": 9, "guided_choice": ["yes"], "logprobs": 1, "echo": True}
    [choice] = post(synthetic_server, COMPLETIONS, body)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abyes", "stop")
    assert choice["logprobs"]["token_logprobs"][2:] == [-9999.0] * 3  # the model expected other tokens
    assert [next(iter(likely)) for likely in choice["logprobs"]["top_logprobs"][2:]] == [*expected("ab", 3)]


def test_a_stop_string_and_a_limit_cut_an_output(synthetic_server):
    """As any other; a stop string within it is no mistake."""
    body = {"prompt": "hi", "max_tokens": 300, "response_format": FORMAT, "seed": 1}
    [cut] = post(synthetic_server, COMPLETIONS, body | {"stop": '"kind"'})["choices"]
    assert cut["finish_reason"] == "stop"
    assert '"name"' in cut["text"]
    assert '"kind"' not in cut["text"]
    [short] = post(synthetic_server, COMPLETIONS, body | {"max_tokens": 5})["choices"]
    assert short["finish_reason"] == "length"


async def test_a_grammar_that_cannot_be_enforced_is_refused(synthetic_server):
    """By the field that it stands in, in each protocol's envelope, streamed or not, before anything runs."""
    schema = {"type": "array", "uniqueItems": True}
    asked: list[tuple[str, dict[str, Any], str]] = [
        (CHAT, {"messages": HI, "guided_json": schema}, "guided_json"),
        (COMPLETIONS, {"prompt": "x", "structured_outputs": {"json": schema}}, "structured_outputs.json"),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "schema": schema}}},
         "text.format.schema"),
        ("/v1/messages", {"messages": HI, "max_tokens": 9, "output_format": {"type": "json_schema", "schema": schema}},
         "output_format.schema"),
    ]  # fmt: skip
    for path, body, param in asked:
        for stream in (False, True):
            error = post(synthetic_server, path, body | {"stream": stream}, 400)["error"]
            assert error["message"].startswith(f'{param} cannot be enforced: Unimplemented keys: ["uniqueItems"].')
            assert error.get("param", param) == param


def test_a_deadline_is_kept_while_a_grammar_is_compiled(synthetic_server):
    """However long that takes; here for ever."""
    post(synthetic_server, COMPLETIONS, {"prompt": "hi", "guided_choice": ["yes"]})
    [compiling] = [
        child for child in psutil.Process(synthetic_server.pid).children() if "rbee.grammars.worker" in child.cmdline()
    ]
    compiling.suspend()
    try:
        deadline = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
        body = {"prompt": "hi", "guided_choice": ["a new one"], "deadline": deadline}
        assert post(synthetic_server, COMPLETIONS, body, 408)["error"]["code"] == "REQUEST_TIMEOUT"
    finally:
        compiling.resume()


def test_parameters_that_leave_nothing_of_the_grammar_end_the_answer(synthetic_server):
    """That shows when the first token is drawn: an error that says so, and the engine goes on."""
    body = {"prompt": "hi", "guided_choice": ["yes"], "allowed_token_ids": [65]}
    error = post(synthetic_server, COMPLETIONS, body, 500)["error"]
    assert error["code"] == "grammar_failed"
    assert "could not be held to the form" in error["message"]
    [choice] = post(synthetic_server, COMPLETIONS, {"prompt": "hi", "guided_choice": ["yes"]})["choices"]
    assert choice["text"] == "yes"


def test_a_real_vocabulary(default_server):
    """The default model: tokens of several characters, tokens for the end, and special ones that no text has."""
    body = {
        "messages": [{"role": "user", "content": "Invent a pet. Answer in JSON."}],
        "max_tokens": 120,
        "temperature": 0,
        "response_format": FORMAT,
    }
    [choice] = post(default_server, CHAT, body)["choices"]
    Person.model_validate_json(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"
    body = {"prompt": "1 2 3", "max_tokens": 40, "guided_regex": "( [0-9]+)+", "temperature": 0}
    [counted] = post(default_server, COMPLETIONS, body)["choices"]
    assert counted["text"].startswith(" 4 5 6")
