"""An exchange whose output is parsed: what its choices are made of, streamed and whole."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken

from rbee.messages import FinishReason
from rbee.models import synthetic
from rbee.server.protocols.openai.dialect import ChatDialect
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.exchange import Backend, GenerationResponse
from rbee.server.streams.generation import OutputPlan, Prompt
from rbee.server.text.output import ModelFormat, Tool
from rbee.server.text.tokenizer import TextCodec
from tests.fakes import RecordingWatch, RecordingWriter
from tests.server.streams.streams_parts import AnsweringClient, collected, make_generation, no_receive, writing_to
from tests.server.streams.tagged_output import PLAN

pytestmark = pytest.mark.anyio

END_OF_TURN = "<|turn|>"


def make_codec():
    """The synthetic model's, with some tags as special tokens."""
    tokenizer = synthetic.tokenizer()
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>", END_OF_TURN]
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in tags])
    return TextCodec(tokenizer)


CODEC = make_codec()
HERMES = OutputPlan(
    format=ModelFormat("hermes", "qwen3", CODEC.special_tokens, CODEC.added_token_ids().get), tools=(Tool("f"),)
)


def tokens_of(text):
    """With tags as tokens."""
    return CODEC.encode(text, add_special_tokens=False)


def letters_of(text):
    """With tags as letters: each byte is a token."""
    return [token for character in text for token in tokens_of(character)]


def make_response(text, generation, *, stream=False, reason=FinishReason.STOP):
    """A chat that the engine answers so: a text, or its tokens."""
    client: Any = AnsweringClient(tokens_of(text) if isinstance(text, str) else text, reason)
    watch: Any = RecordingWatch()
    dialect = ChatDialect("m", generation, StreamOptions(), CODEC.token_bytes)
    return GenerationResponse(Backend(client, CODEC, watch), generation, dialect, stream=stream)


async def written(response):
    """The chunks of a stream."""
    writer = RecordingWriter()

    async def send(message):
        assert message["type"].startswith("http.response")

    await response(writing_to(writer), no_receive, send)
    *frames, done, _ = b"".join(writer.written).split(b"\n\n")
    assert done == b"data: [DONE]"
    return [json.loads(frame.removeprefix(b"data: "))["choices"][0] for frame in frames]


TEXT = '<think>a</think>b<tool_call>f{"x": 1}</tool_call>'


async def test_parser_sees_special_tokens():
    """Although they are skipped where there is no parser: they may be its tags."""
    generation = make_generation(99, output=PLAN)
    [choice] = (await collected(make_response(TEXT, generation)))["choices"]
    assert choice["message"]["reasoning"] == "a"
    assert choice["message"]["content"] == "b"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    [plain] = (await collected(make_response(TEXT, make_generation(99))))["choices"]
    assert plain["message"]["content"] == 'abf{"x": 1}'


async def test_stream_says_the_same():
    """Through Python: the native drain does not parse."""
    generation = make_generation(99, output=PLAN)
    assert not generation.is_plain
    assert make_generation(99).is_plain
    chunks = await written(make_response(TEXT, generation, stream=True))
    deltas = [chunk["delta"] for chunk in chunks]
    assert "".join(delta["reasoning_content"] or "" for delta in deltas) == "a"
    assert "".join(delta.get("content") or "" for delta in deltas) == "b"
    functions = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert functions[0] == {"name": "f", "arguments": ""}
    assert "".join(function["arguments"] for function in functions) == '{"x": 1}'
    assert chunks[-1]["finish_reason"] == "tool_calls"


async def test_each_choice_has_its_parser():
    """Of each prompt too."""
    generation = make_generation(99, output=PLAN, n=2, more_prompts=(Prompt([2]),))
    choices = (await collected(make_response(TEXT, generation)))["choices"]
    assert [choice["message"]["reasoning"] for choice in choices] == ["a"] * 4
    assert len({choice["message"]["tool_calls"][0]["id"] for choice in choices}) == 4


async def test_logprobs_are_of_all_tokens():
    """Also with a prompt that is scored, or token ids that are asked for: nothing of the output is lost."""
    generation = make_generation(99, output=PLAN, list_tokens=True)
    [choice] = (await collected(make_response(TEXT, generation)))["choices"]
    assert choice["token_ids"] == CODEC.encode(TEXT, add_special_tokens=False)
    assert choice["message"]["reasoning"] == "a"


async def test_stop_string_in_the_reasoning():
    """It ends the answer there."""
    generation = make_generation(99, output=PLAN, stops=["a</th"])
    [choice] = (await collected(make_response("<think>Ha</think>b", generation)))["choices"]
    assert choice["message"] == choice["message"] | {"content": "", "reasoning": "H"}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [{}, {"list_tokens": True}, {"stops": ["never", "/think>zz", "think> q"]}])
async def test_the_letters_of_a_tag_are_no_tag(options):
    """From the tokens of the engine to the answer, streamed and whole: a model may quote what ends its reasoning."""
    output = [
        *tokens_of("<think>"),
        *letters_of("É </think> 😀 "),
        *tokens_of("</think>"),
        *letters_of("a <tool_call> b"),
    ]
    output += tokens_of('<tool_call>{"name": "f", "arguments": {"é": 1}}</tool_call>')
    generation = make_generation(99, output=HERMES, **options)
    [choice] = (await collected(make_response(output, generation)))["choices"]
    message = choice["message"]
    assert (message["reasoning"], message["content"]) == ("É </think> 😀 ", "a <tool_call> b")
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"é": 1}'}
    deltas = [chunk["delta"] for chunk in await written(make_response(output, generation, stream=True))]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    if options.get("list_tokens"):
        assert choice["token_ids"] == output


@pytest.mark.parametrize(
    ("stop", "include", "reasoning"),
    [("Ha</think>", False, None), ("a</th", True, "Ha</th"), ("</think>\n", False, "Ha"), ("\n<tool", False, "Ha")],
)
async def test_stop_strings_see_names_only(stop, include, reasoning):
    """One may begin or end within a tag that is a token."""
    output = tokens_of("<think>Ha</think>\n<tool_call>")
    generation = make_generation(99, output=HERMES, stops=[stop], include_stop=include)
    [choice] = (await collected(make_response(output, generation)))["choices"]
    assert choice["message"]["reasoning"] == reasoning
    assert choice["message"]["content"] == ""
    assert choice["finish_reason"] == "stop"
