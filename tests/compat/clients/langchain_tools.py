"""LangChain: tools that are bound to a model, an agent, structured output by each of its methods, and thinking."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.compat.clients.observing import Observations, Question, calls_of, main, tokens


class Product(BaseModel):
    """What the object prompt asks for."""

    product: str
    grams: int


class Weather(BaseModel):
    """An answer that is a tool's arguments."""

    city: Literal["Paris"]
    unit: Literal["C"]


@wrap_model_call
def _one_call(request: Any, handler: Any) -> Any:
    """Without it the small model calls twice, for which an agent asks again."""
    return handler(request.override(model_settings={"parallel_tool_calls": False}))


def _used(message: Any) -> dict[str, int]:
    return tokens(message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"])


def _whole(chunks: Any) -> Any:
    first, *rest = chunks
    for chunk in rest:
        first += chunk
    return first


def _tools(chat: Any, kind: str, ask: Question, seen: Observations) -> None:
    """Calls, whole and streamed, and the answer to a result."""
    name = type(chat).__name__
    end = "stop_reason" if kind else "finish_reason"

    @tool(ask.tool["name"], description=ask.tool["description"])
    def get_weather(city: Literal["Paris"], unit: Literal["C"]) -> str:
        return ask.tool_result if (city, unit) == ("Paris", "C") else "nowhere"

    bound = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage(ask.tool_prompt)
    for call, message in (
        (f"{name}.bind_tools, invoke", bound.invoke([question])),
        (f"{name}.bind_tools, stream", _whole(bound.stream([question]))),
    ):
        calls = calls_of((each["id"], each["name"], each["args"]) for each in message.tool_calls)
        seen.add(f"{kind}call", call, calls=calls, end=message.response_metadata[end])
        results = [get_weather.invoke(each) for each in message.tool_calls]
        assert all(isinstance(result, ToolMessage) for result in results), "the tool's result is no message"
        answer = chat.invoke([question, message, *results])
        used, ended = _used(answer), answer.response_metadata[end]
        seen.add(f"{kind}result", f"{call}, its result", text=answer.content, end=ended, tokens=used)

    # Its answer is a call of a tool of its own, which the agent demands and which ends its loop.
    agent = create_agent(chat, response_format=ToolStrategy(Weather), middleware=[_one_call])
    value = agent.invoke({"messages": [question]})["structured_response"]
    seen.add(f"{kind}call", f"{name}, create_agent, ToolStrategy", calls=[[ask.tool["name"], value.model_dump()]])


def _objects(chat: Any, kind: str, ask: Question, seen: Observations) -> None:
    name = type(chat).__name__
    structured = chat.with_structured_output(Product, method="json_schema", include_raw=True)
    given = structured.invoke(ask.object_prompt)
    assert given["parsing_error"] is None, given["parsing_error"]
    call = f"{name}.with_structured_output, json_schema"
    seen.add(f"{kind}object", call, value=given["parsed"].model_dump(), tokens=_used(given["raw"]))

    tooled = chat.with_structured_output(Weather, method="function_calling")
    value = tooled.invoke(ask.tool_prompt).model_dump()
    call = f"{name}.with_structured_output, function_calling"
    seen.add(f"{kind}call", call, calls=[[ask.tool["name"], value]])

    agent = create_agent(chat, response_format=ProviderStrategy(Product))
    value = agent.invoke({"messages": [HumanMessage(ask.object_prompt)]})["structured_response"].model_dump()
    seen.add(f"{kind}object", f"{name}, create_agent, ProviderStrategy", value=value)


def _thinking(ask: Question, seen: Observations) -> None:
    """Of chats LangChain's client for OpenAI drops it; of Anthropic's messages it is a block of the content."""
    chat = ChatAnthropic(
        model=ask.model,
        base_url=ask.thinker,
        api_key=ask.key,
        max_tokens=ask.dialogue_tokens,
        temperature=0,
        thinking={"type": "adaptive"},
        max_retries=0,
    )
    for call, message in (("invoke", chat.invoke(ask.dialogue)), ("stream", _whole(chat.stream(ask.dialogue)))):
        blocks = {block["type"]: block for block in message.content}
        facts = {"reasoning": blocks["thinking"]["thinking"], "text": blocks["text"]["text"]}
        seen.add("message reasoning", f"ChatAnthropic.{call}, thinking", **facts, tokens=_used(message))


def _run(ask: Question, seen: Observations) -> None:
    seen.version = ", ".join(f"{name} {version(f'langchain-{name}')}" for name in ("openai", "anthropic"))
    seen.version += f", langchain {version('langchain')}"
    settings: dict[str, Any] = {
        "model": ask.model,
        "api_key": ask.key,
        "max_tokens": ask.tool_tokens,
        "temperature": 0,
        "max_retries": 0,
    }
    of_openai = ChatOpenAI(base_url=f"{ask.url}/v1", stream_usage=True, **settings)
    _tools(of_openai, "", ask, seen)
    _objects(of_openai, "", ask, seen)
    of_anthropic = ChatAnthropic(base_url=ask.url, **settings)
    _tools(of_anthropic, "message ", ask, seen)
    _objects(of_anthropic, "message ", ask, seen)
    _thinking(ask, seen)


if __name__ == "__main__":
    main(_run)
