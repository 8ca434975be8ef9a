"""Outputs whose reasoning stays in the text: its tags are kept, and nothing else is read differently."""

from __future__ import annotations

import pytest

from tests.server.text.output.all_recorded_parts import RECORDED
from tests.server.text.output.recorded_parts import TOOLS, Recorded, call, said

WITH_REASONING = [output for output in RECORDED if output.reasoning_parser != "none"]


def read(recorded: Recorded, pieces, *, keep_tags=True):
    """What a parser makes of it."""
    parser = recorded.format.parser(tools=TOOLS, reasoning_open=recorded.reasoning_open, keep_tags=keep_tags)
    spans = [span for piece in pieces for span in parser.push(piece)]
    return said(spans + parser.finish())


@pytest.mark.parametrize("recorded", WITH_REASONING, ids=lambda output: f"{output.reasoning_parser}-{output.what}")
def test_reasoning_and_calls_are_those_without_tags(recorded):
    """Cut anywhere: the same calls, and the same words around them."""
    kept = read(recorded, [recorded.text])
    assert read(recorded, recorded.text) == kept
    assert [part for part in kept if part[0] == "call"] == [part for part in recorded.said if part[0] == "call"]
    shown = "".join("".join(part[1:]) for part in kept)
    for part in recorded.said:
        assert all(word in shown for word in part[-1].split())
    assert {part[0] for part in recorded.said} <= {part[0] for part in kept}


OUTPUTS = [
    ("qwen3", "hermes", "<think>\nHm.\n</think>\n\nHi", ["<think>\nHm.\n", "</think>\n\nHi"]),
    ("qwen3", "hermes", "<think>\n\n</think>\n\nHi", ["<think>\n\n", "</think>\n\nHi"]),
    ("qwen3", "hermes", "<think>A <tool_call> is <think></think>Hi", ["<think>A <tool_call> is <think>",
                                                                          "</think>Hi"]),
    ("qwen3", "hermes", "Hi <think>now</think><|im_end|>", ["Hi <think>now</think>"]),
    ("mistral", "mistral", "[THINK]Hm.[/THINK]Hi", ["[THINK]Hm.", "[/THINK]Hi"]),
    ("granite", "granite", "Here is my thought process: Hm. Here is my response: Hi",
     ["Here is my thought process: Hm. ", "Here is my response: Hi"]),
    ("granite", "granite", "<think>Hm.</think><response>Hi</response>",
     ["<think>Hm.", "</think><response>Hi</response>"]),
    ("openai", "openai", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi",
     ["<|channel|>analysis<|message|>Hm.", "<|end|>Hi"]),
]  # fmt: skip


@pytest.mark.parametrize(("reasoning_parser", "tool_parser", "text", "parts"), OUTPUTS)
def test_reasoning_is_as_the_model_writes_it(reasoning_parser, tool_parser, text, parts):
    """The tag in front belongs to it, the one behind it to the answer; other special tokens are not shown."""
    recorded = Recorded(tool_parser, "", text, (), reasoning_parser=reasoning_parser)
    for pieces in ([text], list(text)):
        assert [part[1] for part in read(recorded, pieces)] == parts


def test_reasoning_that_the_prompt_has_opened():
    """The tag in front is not in the output."""
    recorded = Recorded("hermes", "", "", (), reasoning_parser="qwen3", reasoning_open=True)
    assert read(recorded, ["Hm.</think>Hi"]) == (("reasoning", "Hm."), ("text", "</think>Hi"))


def test_calls_behind_it():
    """They are read, and their tags are not shown."""
    recorded = Recorded("hermes", "", "", (), reasoning_parser="qwen3")
    output = '<think>Hm.</think>\n<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'
    assert read(recorded, output) == (("reasoning", "<think>Hm."), ("text", "</think>"), call("ping", "{}"))
