"""openai-python: tool calls, structured output and reasoning, of chats and Responses, whole and by its helpers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
from pydantic import BaseModel

from tests.compat.clients.observing import Observations, Question, calls_of, main, tokens, user

if TYPE_CHECKING:
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response


class Product(BaseModel):
    """What the object prompt asks for."""

    product: str
    grams: int


def _used(usage: CompletionUsage | None) -> dict[str, int]:
    assert usage is not None
    return tokens(usage.prompt_tokens, usage.completion_tokens)


def _calls(completion: ChatCompletion) -> dict[str, Any]:
    """Facts of a chat that calls tools."""
    [choice] = completion.choices
    assert not choice.message.content, "there is text beside the calls"
    calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return {"calls": calls_of(calls), "end": choice.finish_reason, "tokens": _used(completion.usage)}


def _tools_of_chats(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    """The second call of each kind is of its strict helper, which makes a tool of a class."""
    common: dict[str, Any] = {"model": ask.model, "max_tokens": ask.tool_tokens, "temperature": 0}
    called: dict[str, Any] = {**common, "messages": user(ask.tool_prompt), "tool_choice": "required"}
    one: dict[str, Any] = {"tools": [{"type": "function", "function": ask.tool}], "parallel_tool_calls": False}
    many: dict[str, Any] = {"tools": [{"type": "function", "function": ask.free_tool}]}
    seen.add("call", "chat.completions.create, `tools`", **_calls(client.chat.completions.create(**called, **one)))
    seen.add("calls", "chat.completions.create, two calls", **_calls(client.chat.completions.create(**called, **many)))

    # By hand, as its users do: the index says which call a delta belongs to.
    parts: list[dict[str, str]] = []
    end, usage = None, None
    for chunk in client.chat.completions.create(**called, **many, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            end = choice.finish_reason
            for delta in choice.delta.tool_calls or []:
                if delta.index == len(parts):
                    parts.append({"id": delta.id, "name": delta.function.name, "arguments": ""})
                assert delta.id in {None, parts[delta.index]["id"]}, "a call's id changes"
                parts[delta.index]["arguments"] += delta.function.arguments or ""
    calls = calls_of((part["id"], part["name"], part["arguments"]) for part in parts)
    seen.add("calls", "chat.completions.create, `stream`, two calls", calls=calls, end=end, tokens=_used(usage))

    with client.chat.completions.stream(**called, **many, stream_options={"include_usage": True}) as stream:
        events = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    facts = _calls(final)
    assert [[event.name, json.loads(event.arguments)] for event in events] == facts["calls"], "its events differ"
    assert [event.index for event in events] == list(range(len(events))), "its events have other indexes"
    seen.add("calls", "chat.completions.stream, two calls", **facts)

    strict: Any = [{"type": "function", "function": {**ask.tool, "strict": True}}]
    parsed = client.chat.completions.parse(**called, tools=strict, parallel_tool_calls=False)
    [call] = parsed.choices[0].message.tool_calls or []
    seen.add(
        "call",
        "chat.completions.parse, a strict tool",
        calls=[[call.function.name, call.function.parsed_arguments]],
        end=parsed.choices[0].finish_reason,
        tokens=_used(parsed.usage),
    )
    back = call.model_dump(exclude={"function": {"parsed_arguments"}})
    history: Any = [
        *user(ask.tool_prompt),
        {"role": "assistant", "tool_calls": [back]},
        {"role": "tool", "tool_call_id": call.id, "content": ask.tool_result},
    ]
    answer = client.chat.completions.create(**common, messages=history, tools=strict, tool_choice="none")
    [choice] = answer.choices
    call_of_result = "chat.completions.create, a tool's result"
    text, end = choice.message.content, choice.finish_reason
    seen.add("result", call_of_result, text=text, end=end, tokens=_used(answer.usage))


def _objects_of_chats(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    asked: dict[str, Any] = {
        "model": ask.model,
        "messages": user(ask.object_prompt),
        "max_tokens": ask.tool_tokens,
        "temperature": 0,
        "response_format": Product,
    }

    def add(call: str, completion: Any) -> None:
        [choice] = completion.choices
        value = choice.message.parsed.model_dump()
        seen.add("object", call, value=value, end=choice.finish_reason, tokens=_used(completion.usage))

    add("chat.completions.parse", client.chat.completions.parse(**asked))
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        add("chat.completions.stream, `response_format`", stream.get_final_completion())


def _calls_of_response(response: Response) -> dict[str, Any]:
    calls = [(item.call_id, item.name, item.arguments) for item in response.output if item.type == "function_call"]
    assert len(calls) == len(response.output), "there are other items beside the calls"
    return {"calls": calls_of(calls), **_end_of_response(response)}


def _end_of_response(response: Response) -> dict[str, Any]:
    usage = response.usage
    assert usage is not None
    return {"end": response.status, "tokens": tokens(usage.input_tokens, usage.output_tokens)}


def _responses(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    common: dict[str, Any] = {"model": ask.model, "max_output_tokens": ask.tool_tokens, "temperature": 0}
    called: dict[str, Any] = {**common, "input": user(ask.tool_prompt), "tool_choice": "required"}
    one: dict[str, Any] = {"tools": [{"type": "function", **ask.tool, "strict": True}], "parallel_tool_calls": False}
    many: dict[str, Any] = {"tools": [{"type": "function", **ask.free_tool, "strict": False}]}
    first = client.responses.create(**called, **one)
    seen.add("response call", "responses.create, a strict tool", **_calls_of_response(first))
    with client.responses.stream(**called, **many) as stream:
        events = [event for event in stream if event.type == "response.function_call_arguments.done"]
        facts = _calls_of_response(stream.get_final_response())
    assert [json.loads(event.arguments) for event in events] == [given for _, given in facts["calls"]], "events differ"
    assert [event.output_index for event in events] == list(range(len(events))), "its events have other indexes"
    seen.add("response calls", "responses.stream, two calls", **facts)

    [item] = first.output
    assert item.type == "function_call"
    result = {"type": "function_call_output", "call_id": item.call_id, "output": ask.tool_result}
    history: Any = [*user(ask.tool_prompt), item.model_dump(exclude_none=True), result]
    answer = client.responses.create(**common, input=history, tools=one["tools"], tool_choice="none")
    call = "responses.create, a tool's result"
    seen.add("response result", call, text=answer.output_text, **_end_of_response(answer))

    asked: dict[str, Any] = {**common, "input": ask.object_prompt, "text_format": Product}
    parsed = client.responses.parse(**asked)
    assert parsed.output_parsed is not None
    value = parsed.output_parsed.model_dump()
    seen.add("response object", "responses.parse", value=value, **_end_of_response(parsed))
    with client.responses.stream(**asked) as stream_of_object:
        final = stream_of_object.get_final_response()
    assert final.output_parsed is not None
    value = final.output_parsed.model_dump()
    seen.add("response object", "responses.stream, `text_format`", value=value, **_end_of_response(final))


def _reasoning(client: openai.OpenAI, ask: Question, seen: Observations) -> None:
    """Of chats this client's types know none: it is among the fields that it keeps all the same."""
    common: dict[str, Any] = {"model": ask.model, "temperature": 0}
    asked: dict[str, Any] = {**common, "messages": ask.dialogue, "max_tokens": ask.dialogue_tokens}
    whole = client.chat.completions.create(**asked)
    [choice] = whole.choices
    fields: Any = choice.message
    facts = {"reasoning": fields.reasoning_content, "text": fields.content, "end": choice.finish_reason}
    seen.add("reasoning", "chat.completions.create, reasoning", **facts, tokens=_used(whole.usage))
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        final = stream.get_final_completion()
    [last] = final.choices
    fields = last.message
    facts = {"reasoning": fields.reasoning_content, "text": fields.content, "end": last.finish_reason}
    seen.add("reasoning", "chat.completions.stream, reasoning", **facts, tokens=_used(final.usage))

    with client.responses.stream(**common, input=ask.dialogue, max_output_tokens=ask.dialogue_tokens) as items:
        pieces = [event.delta for event in items if event.type == "response.reasoning_text.delta"]
        response = items.get_final_response()
    thought, _ = response.output
    assert thought.type == "reasoning"
    assert thought.content, "the item of reasoning is empty"
    text = thought.content[0].text
    assert text == "".join(pieces), "its events differ"
    facts = {"reasoning": text, "text": response.output_text, **_end_of_response(response)}
    seen.add("response reasoning", "responses.stream, reasoning", **facts)


def _run(ask: Question, seen: Observations) -> None:
    with openai.OpenAI(base_url=f"{ask.url}/v1", api_key=ask.key, max_retries=0) as client:
        for part in (_tools_of_chats, _objects_of_chats, _responses):
            part(client, ask, seen)
    with openai.OpenAI(base_url=f"{ask.thinker}/v1", api_key=ask.key, max_retries=0) as client:
        _reasoning(client, ask, seen)


if __name__ == "__main__":
    main(_run, package="openai")
