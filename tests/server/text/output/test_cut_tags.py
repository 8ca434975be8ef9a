"""Outputs that a limit cuts inside of a tag: what could only have closed a call is not shown, all other text is."""

from __future__ import annotations

import pytest

from tests.server.text.output.grammar_parts import TOKENS
from tests.server.text.output.recorded_parts import PARIS, WEATHER, Recorded, call, json_call, signed, text

_HERMES = f"<tool_call>\n{json_call('get_weather', PARIS)}"
_QWEN3_CODER = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
_LFM2 = '<|tool_call_start|>[get_weather(city="Paris")]'
_DSML = (
    '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">Paris'
)
_V31 = f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}"
_OUTPUTS = (
    Recorded("hermes", "a closing tag", f"{_HERMES}\n</tool_cal", (WEATHER,)),
    Recorded("hermes", "right behind", f"{_HERMES}</", (WEATHER,)),
    Recorded("hermes", "with another closing tag", f"{_HERMES}\n</", (WEATHER,), reasoning_parser="qwen3"),
    Recorded(
        "hermes",
        "behind reasoning",
        f"<think>Hm.</think>{_HERMES}</t",
        (("reasoning", "Hm."), WEATHER),
        reasoning_parser="qwen3",
    ),
    Recorded("hermes", "a second closing tag", f"{_HERMES}\n</tool_call>\n</tool", (WEATHER,)),
    Recorded("qwen3_coder", "a closing tag", f"{_QWEN3_CODER}</function>\n</tool_c", (WEATHER,)),
    Recorded("functionary_v3_1", "a closing tag", f"<function=get_weather>{PARIS}</func", (WEATHER,)),
    Recorded("granite", "a closing tag", f"<tool_call>{json_call('get_weather', PARIS)}</tool", (WEATHER,)),
    Recorded("lfm2", "a closing tag", f"{_LFM2}<|tool_call_e", (WEATHER,)),
    Recorded("pythonic", "a closing tag", '<|python_start|>[get_weather(city="Paris")]<|python_en', (WEATHER,)),
    Recorded("deepseek_v31", "a closing tag", f"{_V31}<｜tool▁call▁e", (WEATHER,)),
    Recorded(
        "deepseek_v32", "a closing tag", f"{_DSML}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜func", (WEATHER,)
    ),
    Recorded("llama3_json", "a closing tag", f"{json_call('get_weather', PARIS)}<|eo", (WEATHER,)),
)
_SHOWN = (
    Recorded("hermes", "what may open a call", f"{_HERMES}\n</tool_call>\n<tool", (WEATHER, text("\n<tool"))),
    Recorded("hermes", "what may be either", f"{_HERMES}\n</tool_call>\n<", (WEATHER, text("\n<"))),
    Recorded("hermes", "behind a text", f"{_HERMES}\n</tool_call>\nSo </tool", (WEATHER, text("\nSo </tool"))),
    Recorded("hermes", "without a call", "Write </tool_cal", (text("Write </tool_cal"),)),
    Recorded("hermes", "a text of nothing else", "</tool_cal", (text("</tool_cal"),)),
    Recorded("hermes", "in reasoning", "<think>Hm </thin", (("reasoning", "Hm </thin"),), reasoning_parser="qwen3"),
    Recorded(
        "hermes",
        "behind broken arguments",
        '<tool_call>{"name": "get_weather", "arguments": {"city": 1 </tool',
        (call("get_weather", '{"city": 1 '), text("</tool")),
    ),
    Recorded("hermes", "another text", f"{_HERMES}\n</toolbox", (WEATHER, text("</toolbox"))),
    Recorded("lfm2", "what may open a call", f"{_LFM2}<|tool_call_", (WEATHER, text("<|tool_call_"))),
    Recorded("mistral", "no closing tag", f"[TOOL_CALLS]get_weather{PARIS}[ARG", (WEATHER, text("[ARG"))),
    Recorded(
        "qwen3_coder",
        "in a value of another call",
        f"{_QWEN3_CODER}</function>\n</tool_call>\n<tool_call>\n<function=search>\n<parameter=query>\na</param",
        (WEATHER, call("search", '{"query": "a</param')),
    ),
    Recorded(
        "qwen3_coder",
        "a call that is not complete",
        f"{_QWEN3_CODER}</func",
        (call("get_weather", '{"city": "Paris"'), text("</func")),
    ),
)


@pytest.fixture(params=[*_OUTPUTS, *_SHOWN], ids=lambda output: f"{output.tool_parser}-{output.what}")
def cut(request: pytest.FixtureRequest) -> Recorded:
    """One output."""
    output: Recorded = request.param
    return output


def test_what_is_shown(cut):
    """However it is cut before."""
    for pieces in ([cut.text], cut.text, *([cut.text[:at], cut.text[at:]] for at in range(1, len(cut.text)))):
        assert cut.read(pieces) == cut.said


@pytest.mark.parametrize(
    ("tool_parser", "beginning", "rest"), [("hermes", _HERMES, "</tool_cal"), ("lfm2", _LFM2, "<|tool_call_e")]
)
def test_letters_are_text_where_tags_are_tokens(tool_parser, beginning, rest):
    """A tag that is one token is never cut."""
    output = Recorded(tool_parser, "", "", ())
    whole = signed(beginning, sorted(output.tags)) + rest
    assert output.read([whole], TOKENS) == output.read(whole, TOKENS) == (WEATHER, text(rest))
