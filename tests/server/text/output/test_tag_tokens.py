"""Tags that are tokens of the model: the token is the tag, its letters in other tokens are text."""

from __future__ import annotations

import pytest

from rbee.server.text.output import ModelFormat
from rbee.server.text.output.marks import SIGN
from tests.server.text.output.all_recorded_parts import RECORDED
from tests.server.text.output.grammar_parts import TOKENS
from tests.server.text.output.recorded_parts import TOOLS, Recorded, call, json_call, signed, text

PING = json_call("ping", "{}")


@pytest.mark.parametrize(
    "recorded", RECORDED, ids=lambda output: f"{output.reasoning_parser}-{output.tool_parser}-{output.what}"
)
def test_recorded_outputs_say_the_same(recorded):
    """With tags as tokens, whole, character by character and cut at each place, also between a sign and its tag."""
    output = signed(recorded.text, [token for token in TOKENS if token in recorded.tags])
    assert recorded.read([output], TOKENS) == recorded.said
    assert recorded.read(output, TOKENS) == recorded.said
    for place in range(1, len(output)):
        assert recorded.read([output[:place], output[place:]], TOKENS) == recorded.said


OUTPUTS = [
    ("hermes", "none", f"<tool_call>{PING}</tool_call>"),
    ("hermes", "qwen3", "<think>a</think>b"),
    ("qwen3_coder", "none", "<tool_call>ping</tool_call>"),
    ("mistral", "mistral", f"[THINK]a[/THINK][TOOL_CALLS][{PING}] [TOOL_CALLS]ping[ARGS]{{}}"),
    ("granite", "none", f"<|tool_call|>[{PING}]"),
    ("llama3_json", "none", f"<|python_tag|>{PING}"),
    ("deepseek_v3", "none", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\n{}\n```"),
    ("deepseek_v31", "deepseek_r1", "<think>a</think><｜tool▁call▁begin｜>ping<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
    ("openai", "openai", "A<|channel|>analysis<|message|>Hm.<|end|>"),
    ("hermes", "none", "Then <|im_end|> comes."),
]


@pytest.mark.parametrize(("tool_parser", "reasoning_parser", "output"), OUTPUTS)
def test_letters_are_text(tool_parser, reasoning_parser, output):
    """All of them are shown, however they are cut; where the tags are no tokens, they are the tags."""
    recorded = Recorded(tool_parser, "", output, (), reasoning_parser=reasoning_parser)
    for pieces in ([output], list(output)):
        assert recorded.read(pieces, TOKENS) == (text(output),)
    if tool_parser != "qwen3_coder":
        assert recorded.read([output]) != (text(output),)


def test_reasoning_may_quote_its_end():
    """It ends with the token."""
    recorded = Recorded("hermes", "", "", (), reasoning_parser="qwen3", reasoning_open=True)
    output = f"A </think> ends it, <tool_call> calls.{SIGN}</think>So."
    for pieces in ([output], list(output)):
        said = recorded.read(pieces, TOKENS)
        assert said == (("reasoning", "A </think> ends it, <tool_call> calls."), text("So."))


def test_a_text_may_quote_a_tag_before_a_call():
    """The call is the one behind the token."""
    recorded = Recorded("hermes", "", "", ())
    output = f"<tool_call> is {SIGN}<tool_call>{PING}{SIGN}</tool_call>"
    assert recorded.read(output, TOKENS) == (text("<tool_call> is "), call("ping", "{}"))


def test_tags_that_are_no_tokens_are_characters():
    """Beside others that are: Qwen3-Coder's function is text in every vocabulary."""
    recorded = Recorded("qwen3_coder", "", "", ())
    assert recorded.read("<function=ping>\n</function>", TOKENS) == (call("ping", "{}"),)


def test_tokens_in_arguments_are_text():
    """Also in place of a name; no sign is shown, nor one that is cut off from its tag at the end."""
    recorded = Recorded("hermes", "", "", ())
    output = f'{SIGN}<tool_call>{{"name": "p{SIGN}<tool_call>", "arguments": {{"a": "{SIGN}<|im_end|>"}}}}'
    assert recorded.read(output, TOKENS) == (call("p<tool_call>", '{"a": "<|im_end|>"}'),)
    parser = recorded.format_with(TOKENS).parser(tools=TOOLS, reasoning_open=False)
    assert parser.push(f"a{SIGN}")[0].text == "a"
    assert parser.finish() == []


def test_without_tools_their_tags_are_text():
    """Those that are no special tokens, as Qwen's."""
    recorded = Recorded("none", "", "", (), reasoning_parser="qwen3")
    assert recorded.read(f"{SIGN}<tool_call>", ["<think>"]) == (text("<tool_call>"),)


def test_a_token_that_tags_are_spelled_with_is_no_tag():
    """DeepSeek V3.2 has one in the midst of each."""
    form = ModelFormat("deepseek_v32", "none", ["｜DSML｜"], {"｜DSML｜": 5}.get)
    assert form.token_names == {}
    spans = form.parser(tools=TOOLS, reasoning_open=False).push('<｜DSML｜function_calls><｜DSML｜invoke name="ping">')
    assert [span.text for span in spans] == ["ping"]
