"""Outputs in the formats of Functionary, DeepSeek and gpt-oss, and with reasoning, and what they say."""

from __future__ import annotations

from tests.server.text.output.recorded_parts import (
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


def _fenced(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"


def _v31(name: str, arguments: str) -> str:
    return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"


def _deepseek(*calls: str) -> str:
    return f"<｜tool▁calls▁begin｜>{''.join(calls)}<｜tool▁calls▁end｜>"


def _function(name: str, arguments: str) -> str:
    return f"<function={name}>{arguments}</function>"


def _tagged(arguments: str) -> str:
    return f"<tool_call>\n{json_call('get_weather', arguments)}\n</tool_call>"


FUNCTIONARY = (
    Recorded("functionary_v3_2", "no call", "all\nIt is >>> 5.", (text("It is >>> 5."),)),
    Recorded("functionary_v3_2", "no recipient", "Allow me.", (text("Allow me."),), is_whole=False),
    Recorded("functionary_v3_2", "one", f"get_weather\n{PARIS}", (WEATHER,)),
    Recorded(
        "functionary_v3_2",
        "several",
        f"get_weather\n{PARIS}\n>>>search\n{TRICKY}>>>ping\n{{}}",
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "functionary_v3_2",
        "text around",
        f"all\nI look.>>>get_weather\n{PARIS}\n>>>all\nDone.",
        (text("I look."), WEATHER, text("Done.")),
        is_whole=False,
    ),
    Recorded(
        "functionary_v3_2",
        "behind reasoning",
        f"<think>Hm.</think>\n\nget_weather\n{PARIS}",
        (("reasoning", "Hm."), WEATHER),
        reasoning_parser="qwen3",
    ),
    Recorded("functionary_v3_2", "broken", "get_weather\nParis", (text("get_weather\nParis"),), is_whole=False),
    Recorded("functionary_v3_2", "a prompt of Python", "all\n>>>ping()", (text(">>>ping()"),)),
    Recorded("functionary_v3_2", "unclosed", 'search\n{"query": [', (call("search", '{"query": ['),), is_whole=False),
    Recorded("functionary_v3_1", "no call", "a <function b", (text("a <function b"),)),
    Recorded("functionary_v3_1", "one", _function("get_weather", PARIS), (WEATHER,)),
    Recorded(
        "functionary_v3_1",
        "several",
        _function("get_weather", PARIS) + _function("search", TRICKY) + "\n" + _function("ping", "{}"),
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "functionary_v3_1",
        "text around",
        f"I look. {_function('get_weather', PARIS)} Done.",
        (text("I look. "), WEATHER, text(" Done.")),
    ),
    Recorded("functionary_v3_1", "no arguments", _function("ping", ""), (PING,), is_whole=False),
    Recorded("functionary_v3_1", "broken", _function("ping", "now"), (text("ping>now"),), is_whole=False),
    Recorded("functionary_v3_1", "unclosed", "<function=search>{", (call("search", "{"),), is_whole=False),
)
DEEPSEEK = (
    Recorded("deepseek_v3", "no call", "a <｜tool▁call b", (text("a <｜tool▁call b"),)),
    Recorded("deepseek_v3", "one", _deepseek(_fenced("get_weather", PARIS)), (WEATHER,)),
    Recorded(
        "deepseek_v3",
        "several",
        _deepseek(_fenced("get_weather", PARIS), _fenced("search", TRICKY), _fenced("ping", "{}")),
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "deepseek_v3",
        "text around",
        f"I look.\n\n{_deepseek(_fenced('get_weather', PARIS))}Done.",
        (text("I look.\n\n"), WEATHER, text("Done.")),
    ),
    Recorded("deepseek_v3", "no fence", _deepseek(_v31("function", "ping\n{}")), (PING,), is_whole=False),
    Recorded("deepseek_v3", "broken", _deepseek("ping"), (text("ping"),), is_whole=False),
    Recorded(
        "deepseek_v3", "another type", _deepseek(_v31("code", "ping\n{}")), (text("codeping\n{}"),), is_whole=False
    ),
    Recorded(
        "deepseek_v3",
        "no arguments",
        _deepseek(_v31("function", "ping\n")),
        (text("functionping\n"),),
        is_whole=False,
    ),
    Recorded(
        "deepseek_v3",
        "unclosed",
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n{"query": "',
        (call("search", '{"query": "'),),
        is_whole=False,
    ),
    Recorded("deepseek_v31", "no call", "a <｜tool▁call b", (text("a <｜tool▁call b"),)),
    Recorded("deepseek_v31", "one", _deepseek(_v31("get_weather", PARIS)), (WEATHER,)),
    Recorded(
        "deepseek_v31",
        "several",
        _deepseek(_v31("get_weather", PARIS), _v31("search", TRICKY), _v31("ping", "{}")),
        (WEATHER, SEARCH, PING),
    ),
    Recorded(
        "deepseek_v31",
        "text around",
        f"I look.\n\n{_deepseek(_v31('get_weather', PARIS))}Done.",
        (text("I look.\n\n"), WEATHER, text("Done.")),
    ),
    Recorded("deepseek_v31", "broken", _deepseek(_v31("ping", "now")), (text("pingnow"),), is_whole=False),
    Recorded(
        "deepseek_v31",
        "unclosed",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{"query": "',
        (call("search", '{"query": "'),),
        is_whole=False,
    ),
)


def _invoke(name: str, *parameters: str) -> str:
    return f'<｜DSML｜invoke name="{name}">\n' + "".join(f"{one}\n" for one in parameters) + "</｜DSML｜invoke>\n"


def _parameter(key: str, value: str, string: str = "true") -> str:
    return f'<｜DSML｜parameter name="{key}" string="{string}">{value}</｜DSML｜parameter>'


def _dsml(*calls: str) -> str:
    return f"\n\n<｜DSML｜function_calls>\n{''.join(calls)}</｜DSML｜function_calls>"


_OSLO = _invoke("get_weather", _parameter("city", "Oslo"), _parameter("days", "3", "false"))
DSML = (
    Recorded("deepseek_v32", "no call", "a <｜DSML｜function b", (text("a <｜DSML｜function b"),)),
    Recorded("deepseek_v32", "one", _dsml(_invoke("get_weather", _parameter("city", "Paris"))), (WEATHER,)),
    Recorded(
        "deepseek_v32",
        "several",
        _dsml(
            _OSLO,
            _invoke(
                "search",
                _parameter("query", 'a "b" \\ < é\n'),
                _parameter("filters", '{"a": [1, null]}', "false"),
                _parameter("tags", '["x"]', "false"),
            ),
            _invoke("ping"),
        ),
        (
            WEATHER_2,
            call("search", '{"query": "a \\"b\\" \\\\ < é\\n", "filters": {"a": [1, null]}, "tags": ["x"]}'),
            PING,
        ),
    ),
    Recorded(
        "deepseek_v32",
        "behind reasoning",
        f"Hm.</think>I look.{_dsml(_OSLO)}",
        (("reasoning", "Hm."), text("I look.\n\n"), WEATHER_2),
        reasoning_parser="deepseek_r1",
        reasoning_open=True,
    ),
    Recorded(
        "deepseek_v32",
        "values of other types",
        _dsml(
            _invoke("search", _parameter("exact", "True", "false"), _parameter("note", "null", "false")),
            _invoke("get_weather", _parameter("city", "5", "false"), _parameter("days", "many", "false")),
            _invoke("other", _parameter("a", "[1", "false"), _parameter("b", "[1]", "false")),
        ),
        (
            call("search", '{"exact": true, "note": null}'),
            call("get_weather", '{"city": "5", "days": "many"}'),
            call("other", '{"a": "[1", "b": [1]}'),
        ),
        is_whole=False,
    ),
    Recorded(
        "deepseek_v32",
        "no closing tags",
        _dsml('<｜DSML｜invoke name="search"><｜DSML｜parameter name="query" string="true">a</｜DSML｜invoke>'),
        (call("search", '{"query": "a"}'),),
        is_whole=False,
    ),
    Recorded("deepseek_v32", "broken", _dsml("<｜DSML｜invoke>ping"), (text("\n\n>ping"),), is_whole=False),
    Recorded("deepseek_v32", "no name", _dsml('<｜DSML｜invoke name="">'), (text('\n\n name="">'),), is_whole=False),
    Recorded(
        "deepseek_v32",
        "unclosed",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="search">\n<｜DSML｜parameter name="query" string="true">a b',
        (call("search", '{"query": "a b'),),
        is_whole=False,
    ),
)


def _analysis(thoughts: str) -> str:
    return f"<|channel|>analysis<|message|>{thoughts}<|end|><|start|>assistant"


def _commentary(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


HARMONY = tuple(
    Recorded("openai", what, output, said, is_whole=is_whole, reasoning_parser="openai")
    for what, output, said, is_whole in (
        (
            "no call",
            f"{_analysis('Hm.')}<|channel|>final<|message|>It is < 5.<|return|>",
            (("reasoning", "Hm."), text("It is < 5.")),
            True,
        ),
        ("no reasoning", "<|channel|>final<|message|>Yes.", (text("Yes."),), True),
        ("one", _commentary("get_weather", PARIS), (WEATHER,), True),
        (
            "reasoning and a call",
            _analysis("Hm.") + _commentary("search", TRICKY),
            (("reasoning", "Hm."), SEARCH),
            True,
        ),
        (
            "several",
            f"{_commentary('get_weather', PARIS)}<|start|>assistant{_commentary('ping', '{}')}",
            (WEATHER, PING),
            False,
        ),
        (
            "a preamble",
            f"<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{_commentary('ping', '{}')}",
            (text("I look."), PING),
            True,
        ),
        (
            "the recipient first",
            f" to=functions.get_weather<|channel|>commentary json<|message|>{PARIS}<|call|>",
            (WEATHER,),
            False,
        ),
        ("no arguments", _commentary("ping", ""), (PING,), False),
        (
            "another recipient",
            "<|channel|>analysis to=browser.search code<|message|>{}<|call|>",
            (("reasoning", "{}"),),
            False,
        ),
        ("no header", "Hello <|there|>", (text("Hello <|there|>"),), False),
        ("a broken header", "<|channel|>final\nHello", (text("Hello"),), False),
        ("text in a header", "<|channel|>final Hello", (text(" Hello"),), False),
        ("an unclosed header", "<|channel|>commentary to=func", (), False),
        ("unclosed", '<|channel|>commentary to=functions.ping<|message|>{"', (call("ping", '{"'),), False),
    )
)
REASONING = tuple(
    Recorded("hermes", what, output, said, is_whole=is_whole, reasoning_parser=parser, reasoning_open=is_open)
    for parser, what, is_open, output, said, is_whole in (
        (
            "qwen3",
            "reasoning",
            False,
            "<think>\nHm < 5\n</think>\n\nYes.",
            (("reasoning", "\nHm < 5\n"), text("\n\nYes.")),
            True,
        ),
        ("qwen3", "none", False, "Yes.", (text("Yes."),), True),
        ("qwen3", "empty", False, "<think>\n\n</think>\n\nYes.", (text("\n\nYes."),), True),
        (
            "qwen3",
            "opened by the prompt",
            True,
            "Hm.\n</think>\n\nYes.",
            (("reasoning", "Hm.\n"), text("\n\nYes.")),
            True,
        ),
        ("qwen3", "opened twice", True, "<think>Hm.</think>Yes.", (("reasoning", "Hm."), text("Yes.")), False),
        ("qwen3", "unclosed", False, "<think>Hm. </thin", (("reasoning", "Hm. </thin"),), False),
        ("qwen3", "unclosed from the prompt on", True, "Hm.", (("reasoning", "Hm."),), False),
        ("qwen3", "tags in the text", False, "A <think> and a </think> b", (text("A  and a  b"),), False),
        (
            "qwen3",
            "with a call",
            False,
            f"<think>Hm.</think>\n\n{_tagged(PARIS)}",
            (("reasoning", "Hm."), WEATHER),
            True,
        ),
        (
            "qwen3",
            "a call considered",
            False,
            f"<think>{_tagged(PARIS)}</think>Yes.",
            (("reasoning", f"\n{json_call('get_weather', PARIS)}\n"), text("Yes.")),
            False,
        ),
        (
            "qwen3",
            "twice",
            False,
            f"<think>a</think>{_tagged(PARIS)}<think>b</think>c",
            (("reasoning", "a"), WEATHER, ("reasoning", "b"), text("c")),
            False,
        ),
        ("deepseek_r1", "opened by the prompt", True, "Hm.</think>Yes.", (("reasoning", "Hm."), text("Yes.")), True),
        (
            "mistral",
            "reasoning",
            False,
            "[THINK]Hm [1].[/THINK]Yes [/x].",
            (("reasoning", "Hm [1]."), text("Yes [/x].")),
            True,
        ),
        (
            "granite",
            "phrases",
            False,
            "Here is my thought process: a. Here is it.\nHere's my response: b Here's my response: c",
            (("reasoning", " a. Here is it.\n"), text(" b Here's my response: c")),
            True,
        ),
        ("granite", "tags", False, "<think>a</think><response>b</response>", (("reasoning", "a"), text("b")), False),
        (
            "granite",
            "phrases in the text",
            False,
            "So: Here is my thought process: a",
            (text("So: Here is my thought process: a"),),
            True,
        ),
        ("granite", "half a phrase", False, "Here is my thou", (text("Here is my thou"),), True),
        ("none", "no format", True, "<think>a</think>", (text("<think>a</think>"),), False),
    )
)
