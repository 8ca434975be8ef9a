"""Outputs in Python's words, and what they say."""

from __future__ import annotations

from tests.server.text.output.recorded_parts import (
    PING,
    SEARCH,
    WEATHER,
    WEATHER_2,
    Recorded,
    call,
    json_call,
    text,
)

_PARIS, _OSLO, _PING = 'get_weather(city="Paris")', 'get_weather(city="Oslo", days=3)', "ping()"
_TRICKY = (
    r'search(query="a } \" { \\ [x] \u00e9 é 😀 \ud83d\ude00 </tool_call> </function>",'
    r' filters={"deep": [{"a": {}}, [], -1.5e3, null]})'
)
_IN_PYTHON = r"""search( query = 'a "b" (\'c\') \n d\x41\U0001f600\z', tags=['x', "it's",], exact=True, note=None,
  filters={'a': (1, 2.5), 2: {True: None}, "n": 0x1F, 'm': 1_000, "o": name})"""
_AS_JSON = (
    r'{"query": "a \"b\" ('
    r"'c'"
    r') \n dA😀\\z", "tags": ["x", "it'
    r"'s"
    r'"], "exact": true, "note": null, '
    r'"filters": {"a": [1, 2.5], "2": {"true": null}, "n": 31, "m": 1000, "o": "name"}}'
)


def _tagged(*calls: str) -> str:
    return f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>"


PYTHONIC = (
    Recorded("pythonic", "no call", "It is [sunny].", (text("It is [sunny]."),)),
    Recorded("pythonic", "one", f"[{_PARIS}]", (WEATHER,)),
    Recorded("pythonic", "several", f"[{_PARIS}, {_TRICKY},\n{_PING}]", (WEATHER, SEARCH, PING)),
    Recorded("pythonic", "other quotes", "[get_weather(city='Paris')]", (WEATHER,)),
    Recorded("pythonic", "behind the tag", f"<|python_start|>[{_OSLO}]<|python_end|>", (WEATHER_2,), is_whole=False),
    Recorded("pythonic", "text before the tag", f"I look.\n<|python_start|>[{_PARIS}]", (text("I look.\n"), WEATHER)),
    Recorded("pythonic", "white space", f"\n[ {_PARIS} ,{_PING} ]\n", (WEATHER, PING), is_whole=False),
    Recorded("pythonic", "text behind", f"[{_PARIS}] Done.", (WEATHER, text("Done.")), is_whole=False),
    Recorded("pythonic", "Python's literals", f"[{_IN_PYTHON}]", (call("search", _AS_JSON),), is_whole=False),
    Recorded(
        "pythonic",
        "three quotes",
        '[search(query="""a "b"\n""c""\\n""", note=\'\'\'\'\'\', tags=[""]), ping()]',
        (call("search", r'{"query": "a \"b\"\n\"\"c\"\"\n", "note": "", "tags": [""]}'), PING),
        is_whole=False,
    ),
    Recorded(
        "pythonic",
        "quotes that are not escaped",
        "[search(query='it's \"x\", y'), ping()]",
        (call("search", r"""{"query": "it's \"x\", y"}"""), PING),
        is_whole=False,
    ),
    Recorded("pythonic", "a list", "[1, 2]", (text("[1, 2]"),), is_whole=False),
    Recorded(
        "pythonic",
        "JSON without a tag",
        f"[{json_call('ping', '{}')}]",
        (text(f"[{json_call('ping', '{}')}]"),),
        is_whole=False,
    ),
    Recorded("pythonic", "a name that is no tool", "[print(1)]", (text("[print(1)]"),), is_whole=False),
    Recorded(
        "pythonic",
        "another element",
        f"[{_PARIS}, print(1)]",
        (WEATHER, text("print(1)]")),
        is_whole=False,
    ),
    Recorded("pythonic", "no keyword", "[search(1)]", (call("search", ""), text("1)]")), is_whole=False),
    Recorded(
        "pythonic",
        "unclosed",
        "[search(query='a', filters={'b': [",
        (call("search", '{"query": "a", "filters": {"b": ['),),
        is_whole=False,
    ),
    Recorded("pythonic", "cut in a string", "[search(query='a", (call("search", '{"query": "a'),), is_whole=False),
    Recorded("pythonic", "cut in a name", "[sear", (text("[sear"),), is_whole=False),
    Recorded(
        "pythonic",
        "behind reasoning",
        f"<think>[{_PING}]</think>\n[{_PARIS}]",
        (("reasoning", f"[{_PING}]"), WEATHER),
        reasoning_parser="qwen3",
    ),
)
LFM2 = (
    Recorded("lfm2", "no call", "a <|tool_call_st b", (text("a <|tool_call_st b"),)),
    Recorded("lfm2", "one", _tagged(_PARIS), (WEATHER,)),
    Recorded("lfm2", "several", _tagged(_PARIS, _TRICKY, _PING), (WEATHER, SEARCH, PING)),
    Recorded(
        "lfm2",
        "text around",
        f"I look. {_tagged(_PARIS)}Done. {_tagged(_OSLO)} [{_PING}]",
        (text("I look. "), WEATHER, text("Done. "), WEATHER_2, text(f" [{_PING}]")),
    ),
    Recorded("lfm2", "an unknown tool", _tagged("f.g(a=1)"), (call("f.g", '{"a": 1}'),), is_whole=False),
    Recorded("lfm2", "Python's literals", _tagged(_IN_PYTHON), (call("search", _AS_JSON),), is_whole=False),
    Recorded(
        "lfm2",
        "JSON",
        _tagged(json_call("get_weather", '{"city": "Paris"}'), json_call("ping", "{}")) + "Done(1)",
        (WEATHER, PING, text("Done(1)")),
        is_whole=False,
    ),
    Recorded("lfm2", "no list", "<|tool_call_start|>ping()<|tool_call_end|>", (text("ping()"),), is_whole=False),
    Recorded("lfm2", "a missing closing tag", f"<|tool_call_start|>[{_PARIS}]", (WEATHER,), is_whole=False),
    Recorded("lfm2", "unclosed", "<|tool_call_start|>[search(query=", (call("search", '{"query": '),), is_whole=False),
)
