"""anthropic-sdk-python: tool calls, its tool runner, structured output and thinking, whole and by its accumulator."""

from __future__ import annotations

from typing import Any, Literal

import anthropic
from anthropic import beta_tool
from pydantic import BaseModel

from tests.compat.clients.observing import Observations, Question, calls_of, main, tokens, user

_GREEDY: dict[str, Any] = {"extra_body": {"temperature": 0}}


class Product(BaseModel):
    """What the object prompt asks for."""

    product: str
    grams: int


def _ended(message: Any) -> dict[str, Any]:
    usage = message.usage
    used = tokens(usage.input_tokens + (usage.cache_read_input_tokens or 0), usage.output_tokens)
    return {"end": message.stop_reason, "tokens": used}


def _calls(message: Any) -> dict[str, Any]:
    assert {block.type for block in message.content} == {"tool_use"}, "there are other blocks beside the calls"
    return {"calls": calls_of((block.id, block.name, block.input) for block in message.content), **_ended(message)}


def _text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def _tools(client: anthropic.Anthropic, ask: Question, seen: Observations) -> None:
    def tool(asked: dict[str, Any], **more: Any) -> Any:
        return {"name": asked["name"], "description": asked["description"], "input_schema": asked["parameters"], **more}

    common: dict[str, Any] = {"model": ask.model, "max_tokens": ask.tool_tokens, **_GREEDY}
    called: dict[str, Any] = {**common, "messages": user(ask.tool_prompt)}
    only_one: Any = {"type": "any", "disable_parallel_tool_use": True}
    first = client.messages.create(**called, tools=[tool(ask.tool, strict=True)], tool_choice=only_one)
    seen.add("message call", "messages.create, a strict tool", **_calls(first))
    many: dict[str, Any] = {"tools": [tool(ask.free_tool)], "tool_choice": {"type": "any"}}
    seen.add("message calls", "messages.create, two calls", **_calls(client.messages.create(**called, **many)))

    with client.messages.stream(**called, **many) as stream:
        pieces: dict[int, str] = {}
        for event in stream:
            if event.type == "input_json":
                pieces[len(pieces) - 1] += event.partial_json
            elif event.type == "content_block_start":
                assert event.index == len(pieces), "a block has another index"
                pieces[event.index] = ""
        final = stream.get_final_message()
    assert all(pieces.values()), "a block of the stream has no arguments"
    seen.add("message calls", "messages.stream, two calls", **_calls(final))

    answer = client.messages.create(
        **common,
        messages=[
            *user(ask.tool_prompt),
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": first.content[0].id, "content": ask.tool_result}],
            },
        ],
        tools=[tool(ask.tool)],
        tool_choice={"type": "none"},
    )
    seen.add("message result", "messages.create, a tool's result", text=_text(answer), **_ended(answer))


def _runner(client: anthropic.Anthropic, ask: Question, seen: Observations, *, stream: bool) -> None:
    """It calls the function and sends the result. That the model answers then, and calls no more, it is told by us."""
    done = []

    @beta_tool(name=ask.tool["name"], description=ask.tool["description"])
    def get_weather(city: Literal["Paris"], unit: Literal["C"]) -> str:
        done.append((city, unit))
        return ask.tool_result

    runner = client.beta.messages.tool_runner(
        model=ask.model,
        max_tokens=ask.tool_tokens,
        messages=user(ask.tool_prompt),
        tools=[get_weather],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stream=stream,
        **_GREEDY,
    )
    messages = []
    for turn in runner:
        messages.append(turn.get_final_message() if stream else turn)
        runner.set_messages_params(lambda params: {**params, "tool_choice": {"type": "none"}})
    first, last = messages
    call = "beta.messages.tool_runner, `stream`" if stream else "beta.messages.tool_runner"
    facts = _calls(first)
    assert done == [("Paris", "C")], f"the function was called with {done}"
    seen.add("message call", call, calls=facts["calls"], end=facts["end"])
    seen.add("message result", f"{call}, the result", text=_text(last), **_ended(last))


def _objects(client: anthropic.Anthropic, ask: Question, seen: Observations) -> None:
    asked: dict[str, Any] = {
        "model": ask.model,
        "messages": user(ask.object_prompt),
        "max_tokens": ask.tool_tokens,
        "output_format": Product,
        **_GREEDY,
    }
    parsed = client.messages.parse(**asked)
    assert parsed.parsed_output is not None
    seen.add("message object", "messages.parse", value=parsed.parsed_output.model_dump(), **_ended(parsed))
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    value = final.parsed_output.model_dump()
    seen.add("message object", "messages.stream, `output_format`", value=value, **_ended(final))


def _thinking(client: anthropic.Anthropic, ask: Question, seen: Observations) -> None:
    asked: dict[str, Any] = {"model": ask.model, "thinking": {"type": "adaptive"}, **_GREEDY}

    def add(call: str, message: Any) -> None:
        thought, text = message.content
        assert (thought.type, text.type) == ("thinking", "text"), "the blocks are others"
        assert thought.signature, "clients leave out a block without a signature"
        seen.add("message reasoning", call, reasoning=thought.thinking, text=text.text, **_ended(message))

    dialogue: dict[str, Any] = {"messages": ask.dialogue, "max_tokens": ask.dialogue_tokens}
    whole = client.messages.create(**asked, **dialogue)
    add("messages.create, `thinking`", whole)
    with client.messages.stream(**asked, **dialogue) as stream:
        pieces = [event.thinking for event in stream if event.type == "thinking"]
        final = stream.get_final_message()
    assert "".join(pieces) == final.content[0].thinking, "its events differ"
    add("messages.stream, `thinking`", final)

    # The blocks go back as they are; the model sees none of its thoughts again.
    again = client.messages.create(
        **asked,
        messages=[*ask.dialogue, {"role": "assistant", "content": whole.content}, *user("And hens?")],
        max_tokens=ask.max_tokens,
    )
    assert again.content, "there is no answer to a turn behind thinking"


def _run(ask: Question, seen: Observations) -> None:
    with anthropic.Anthropic(base_url=ask.url, api_key=ask.key, max_retries=0) as client:
        _tools(client, ask, seen)
        _runner(client, ask, seen, stream=False)
        _runner(client, ask, seen, stream=True)
        _objects(client, ask, seen)
        # A model without reasoning answers as ever.
        unmoved = client.messages.create(
            model=ask.model,
            messages=ask.messages,
            max_tokens=ask.max_tokens,
            thinking={"type": "enabled", "budget_tokens": 1024},
            **_GREEDY,
        )
        seen.add(
            "message", "messages.create, `thinking`, of a model that does not", text=_text(unmoved), **_ended(unmoved)
        )
    with anthropic.Anthropic(base_url=ask.thinker, api_key=ask.key, max_retries=0) as client:
        _thinking(client, ask, seen)


if __name__ == "__main__":
    main(_run, package="anthropic")
