"""Outputs in the formats of Hermes, Qwen3-Coder, Llama, Mistral and Granite, and what they say."""

from __future__ import annotations

from tests.server.text.output.recorded_parts import (
    OSLO,
    PARIS,
    PING,
    SEARCH,
    TRICKY,
    WEATHER,
    WEATHER_2,
    Recorded,
    call,
    json_call,
    text,
)


def _hermes(name: str, arguments: str) -> str:
    return f"<tool_call>\n{json_call(name, arguments)}\n</tool_call>"


def _xml(name: str, **values: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def _named(name: str, arguments: str) -> str:
    return f"[TOOL_CALLS]{name}[ARGS]{arguments}"


HERMES = (
    Recorded("hermes", "no call", "It is 5 < 6, {sunny}.", (text("It is 5 < 6, {sunny}."),)),
    Recorded("hermes", "one", _hermes("get_weather", PARIS), (WEATHER,)),
    Recorded(
        "hermes",
        "several",
        f"{_hermes('get_weather', PARIS)}\n{_hermes('search', TRICKY)}\n{_hermes('ping', '{}')}<|im_end|>",
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "hermes",
        "text around",
        f"Let me look.\n{_hermes('get_weather', PARIS)}\nDone.",
        (text("Let me look.\n"), WEATHER, text("\nDone.")),
    ),
    Recorded(
        "hermes",
        "arguments first",
        f'<tool_call>{{"arguments": {TRICKY}, "name": "search"}}</tool_call>',
        (SEARCH,),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "arguments as a string",
        r'<tool_call>{"name": "search", "arguments": "{\"query\": \"\\u00e9 \ud83d\ude00 \\n\"}"}</tool_call>',
        (call("search", r'{"query": "\u00e9 😀 \n"}'),),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "odd escapes in a string",
        r'<tool_call>{"name": "search", "arguments": "\ud83d \ud83dé \u12g4 \x \/ \\"}</tool_call>',
        (call("search", "\ufffd \ufffdé \\u12g4 \\x / \\"),),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "other members",
        f'<tool_call>{{"id": [1, {{}}], "type": "x", "function": {json_call("get_weather", PARIS)}}}</tool_call>',
        (WEATHER,),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "no arguments",
        '<tool_call>{"name": "ping"}</tool_call><tool_call>{"name": "ping", "arguments": null}</tool_call>',
        (PING, PING),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "one brace too many",
        f"<tool_call>{json_call('get_weather', PARIS)}}}</tool_call>",
        (WEATHER,),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "no object",
        "<tool_call>get_weather</tool_call> or <tool_call>{1}</tool_call>",
        (text("get_weather or {1}"),),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "a tag in a tag",
        f'<tool_call>{{"name": 5, <tool_call>{json_call("get_weather", PARIS)}</tool_call>',
        (text('{"name": 5, '), WEATHER),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "broken arguments",
        '<tool_call>{"name": "search", "arguments": {"tags": ["a"}}</tool_call> So.',
        (call("search", '{"tags": ["a"'), text(" So.")),
        is_whole=False,
    ),
    Recorded(
        "hermes",
        "unclosed",
        '<tool_call>\n{"name": "search", "arguments": {"query": "a \\"b',
        (call("search", '{"query": "a \\"b'),),
        is_whole=False,
    ),
    Recorded("hermes", "unclosed name", '<tool_call>{"name": "sea', (text('{"name": "sea'),), is_whole=False),
    Recorded("hermes", "half a tag", "So <tool_ca", (text("So <tool_ca"),)),
    Recorded(
        "hermes", "unknown tool", _hermes("fly", '{"to": "Mars"}'), (call("fly", '{"to": "Mars"}'),), is_whole=False
    ),
)
QWEN3_CODER = (
    Recorded("qwen3_coder", "no call", "a < b </", (text("a < b </"),)),
    Recorded("qwen3_coder", "one", _xml("get_weather", city="Paris"), (WEATHER,)),
    Recorded(
        "qwen3_coder",
        "several",
        f"{_xml('get_weather', city='Paris')}\n{_xml('get_weather', city='Oslo', days='3')}\n{_xml('ping')}",
        (WEATHER, WEATHER_2, PING),
    ),
    Recorded(
        "qwen3_coder",
        "text around",
        f"I look.\n\n{_xml('get_weather', city='Paris')}\nDone.",
        (text("I look.\n\n"), WEATHER, text("\nDone.")),
    ),
    Recorded(
        "qwen3_coder",
        "strings as they are",
        _xml("search", query='\n"a" \\n {<b>}\té 😀\nx\n', exact="true"),
        (call("search", '{"query": "\\n\\"a\\" \\\\n {<b>}\\té 😀\\nx\\n", "exact": true}'),),
    ),
    Recorded(
        "qwen3_coder",
        "values by type",
        _xml("search", query="5", filters='{"a": [1, "}"]}', tags='["x"]', exact="True", note="null"),
        (
            call(
                "search",
                '{"query": "5", "filters": {"a": [1, "}"]}, "tags": ["x"], "exact": true, "note": null}',
            ),
        ),
        is_whole=False,  # True
    ),
    Recorded(
        "qwen3_coder",
        "values of other types",
        _xml("search", filters="[1]", tags="x, y", exact="perhaps", note="No", other="7"),
        (
            call(
                "search",
                '{"filters": "[1]", "tags": "x, y", "exact": "perhaps", "note": "No", "other": "7"}',
            ),
        ),
        is_whole=False,
    ),
    Recorded(
        "qwen3_coder",
        "missing tags",
        "<function=get_weather>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</function>\n</tool_call>",
        (WEATHER_2,),
        is_whole=False,
    ),
    Recorded("qwen3_coder", "JSON in the tag", _hermes("get_weather", PARIS), (WEATHER,), is_whole=False),
    Recorded(
        "qwen3_coder",
        "no function",
        "<tool_call>\nget_weather\n</tool_call>",
        (text("\nget_weather\n"),),
        is_whole=False,
    ),
    Recorded(
        "qwen3_coder",
        "broken",
        "<tool_call>\n<function=get_weather>\ncity: Paris\n</function>\n</tool_call>",
        (("call", "get_weather", ""), text("city: Paris\n\n")),
        is_whole=False,
    ),
    Recorded(
        "qwen3_coder",
        "unclosed",
        "<tool_call>\n<function=search>\n<parameter=query>\nline 1\nline 2\n</para",
        (call("search", '{"query": "line 1\\nline 2\\n</para'),),
        is_whole=False,
    ),
)
LLAMA = (
    Recorded("llama3_json", "no call", '{"a": 1} is JSON.', (text('{"a": 1} is JSON.'),), is_whole=False),
    Recorded("llama3_json", "one", json_call("get_weather", PARIS, "parameters"), (WEATHER,)),
    Recorded(
        "llama3_json",
        "after the tag",
        f"<|python_tag|>{json_call('search', TRICKY, 'parameters')}<|eom_id|>",
        (SEARCH,),
    ),
    Recorded(
        "llama3_json",
        "several",
        f"{json_call('get_weather', PARIS, 'parameters')}; {json_call('search', TRICKY, 'parameters')};"
        f"{json_call('ping', '{}', 'parameters')}",
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "llama3_json",
        "text before the tag",
        f"I look.\n<|python_tag|>{json_call('get_weather', PARIS, 'parameters')}",
        (text("I look.\n"), WEATHER),
    ),
    Recorded(
        "llama3_json",
        "text behind",
        f"{json_call('get_weather', PARIS, 'parameters')} Done.",
        (WEATHER, text("Done.")),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "a type first",
        f'{{"type": "function", "name": "get_weather", "parameters": {PARIS}}}',
        (WEATHER,),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "a name that is no tool",
        ' {"name": "Ada", "parameters": {}}',
        (text(' {"name": "Ada", "parameters": {}}'),),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "code after the tag",
        "<|python_tag|>print(1)",
        (text("print(1)"),),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "a tool of its own",
        '<|python_tag|>brave_search.call(query="current weather in Menlo Park, California")<|eom_id|>',
        (call("brave_search", '{"query": "current weather in Menlo Park, California"}'),),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "in Python's words",
        """I look.<|python_tag|>search.call( query = 'a "b" (\\'c\\') \\n d', tags=["x"], exact=True,"""
        " note=None) Done.",
        (
            text("I look."),
            call("search", '{"query": "a \\"b\\" (\'c\') \\n d", "tags": ["x"], "exact": true, "note": null}'),
            text("Done."),
        ),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "quotes that are not escaped",
        '<|python_tag|>wolfram_alpha.call(query="solve "x^3" = 8")',
        (call("wolfram_alpha", r'{"query": "solve \"x^3\" = 8"}'),),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "Python that breaks off",
        '<|python_tag|>brave_search.call(query="x',
        (call("brave_search", '{"query": "x'),),
        is_whole=False,
    ),
    Recorded("llama3_json", "Python without arguments", "<|python_tag|>ping.call()", (PING,), is_whole=False),
    Recorded(
        "llama3_json",
        "Python that calls no tool",
        '<|python_tag|>client.call(url="x")',
        (text('client.call(url="x")'),),
        is_whole=False,
    ),
    Recorded(
        "llama3_json",
        "JSON later on",
        f"See {json_call('ping', '{}', 'parameters')}",
        (text(f"See {json_call('ping', '{}', 'parameters')}"),),
    ),
    Recorded(
        "llama3_json",
        "unclosed",
        '{"name": "search", "parameters": {"query": "x',
        (call("search", '{"query": "x'),),
        is_whole=False,
    ),
    Recorded("llama3_json", "unclosed name", '{"name": "sear', (text('{"name": "sear'),), is_whole=False),
)
MISTRAL = (
    Recorded("mistral", "no call", "a [TOOL and b", (text("a [TOOL and b"),)),
    Recorded("mistral", "one", _named("get_weather", PARIS), (WEATHER,)),
    Recorded("mistral", "one in a list", f"[TOOL_CALLS] [{json_call('search', TRICKY)}]", (SEARCH,)),
    Recorded(
        "mistral",
        "several",
        _named("get_weather", PARIS) + _named("search", TRICKY) + _named("ping", "{}"),
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "mistral",
        "several in a list",
        f"[TOOL_CALLS][{json_call('get_weather', PARIS)}, {json_call('get_weather', OSLO)}]",
        (WEATHER, WEATHER_2),
    ),
    Recorded(
        "mistral",
        "text around",
        f"I look.{_named('get_weather', PARIS)} Done.",
        (text("I look."), WEATHER, text("Done.")),
        is_whole=False,
    ),
    Recorded("mistral", "an id", f"[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{PARIS}", (WEATHER,)),
    Recorded("mistral", "no separator", f"[TOOL_CALLS]get_weather{PARIS}", (WEATHER,), is_whole=False),
    Recorded("mistral", "broken", "[TOOL_CALLS]get weather", (text("get weather"),), is_whole=False),
    Recorded("mistral", "broken list", "[TOOL_CALLS][1, 2]", (text("[1, 2]"),), is_whole=False),
    Recorded(
        "mistral", "unclosed", '[TOOL_CALLS]search[ARGS]{"query": "', (call("search", '{"query": "'),), is_whole=False
    ),
    Recorded("mistral", "unclosed name", "[TOOL_CALLS]sea", (text("sea"),), is_whole=False),
)
GRANITE = (
    Recorded("granite", "no call", "It is <|tool|> here.", (text("It is <|tool|> here."),)),
    Recorded("granite", "one", f"<|tool_call|>[{json_call('get_weather', PARIS)}]", (WEATHER,)),
    Recorded(
        "granite",
        "several",
        f"<|tool_call|> [{json_call('get_weather', PARIS)}, {json_call('search', TRICKY)},{json_call('ping', '{}')}]",
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "granite",
        "text around",
        f"I look. <tool_call>[{json_call('get_weather', PARIS)}] Done.",
        (text("I look. "), WEATHER, text("Done.")),
        is_whole=False,
    ),
    Recorded("granite", "an object alone", f"<tool_call>{json_call('search', TRICKY)}", (SEARCH,), is_whole=False),
    Recorded("granite", "broken", "<|tool_call|>[get_weather]", (text("[get_weather]"),), is_whole=False),
    Recorded(
        "granite",
        "unclosed",
        f"<|tool_call|>[{json_call('get_weather', PARIS)}, {{",
        (WEATHER, text("{")),
        is_whole=False,
    ),
)
