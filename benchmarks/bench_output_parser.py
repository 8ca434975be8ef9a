"""What an output parser costs per token, for a long output in each format, and whether that grows with its length.

    python benchmarks/bench_output_parser.py --save     # about half a minute
    python benchmarks/bench_output_parser.py --tokens 4096 --rounds 1

An output has `--tokens` pieces of four characters each, about what a token has. Of each format there are three: text
without calls, many short calls one after the other with text between them, and one call whose argument is a string
that fills the output. Reasoning comes before the first two.

* `ns`: the median over the rounds, of one output's time divided by its pieces: `push` for each piece, and `finish`.
* `ratio`: of the time of the second half of the pieces to that of the first half, the median again. 1 is linear time.
* `whole_ns`: the same output in one piece, per token.

The floor is an object whose `push` returns a list with its argument.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from program import argument_parser, command_line, finish, progress
from saving import table

from rbee.server.text.output import ModelFormat, OutputKind, Span, Tool
from rbee.server.text.output.formats import REASONING_FORMATS, TOOL_FORMATS

if TYPE_CHECKING:
    from rbee.server.text.output import OutputParser

_PIECE = 4  # characters
_TEXT = 'It is 5 < 6, and in Paris it is {warm}; "so" they say: x[1] >> 2.\n'
_TOOLS = (Tool("get_weather", None, {"type": "object", "properties": {"city": {"type": "string"}}}),)
_WORDS = 'It is \\"warm\\" there, {so} they [say]; x \\u00e9 '  # in a JSON string
_SPECIAL_TOKENS = tuple(f"<|reserved_{number}|>" for number in range(1000))


class Format(NamedTuple):
    """How a model writes a call of get_weather: `call` with {} for the city's text, and the reasoning it has."""

    call: str
    reasoning: tuple[str, str, str] = ("qwen3", "<think>\n", "\n</think>\n\n")


_JSON = '{{"name": "get_weather", "{}": {{"city": "%s"}}}}'
FORMATS = {
    "hermes": Format(f"<tool_call>\n{_JSON.format('arguments')}\n</tool_call>\n"),
    "qwen3_coder": Format(
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n%s\n</parameter>\n</function>\n</tool_call>\n"
    ),
    "llama3_json": Format(f"<|python_tag|>{_JSON.format('parameters')}"),
    "mistral": Format('[TOOL_CALLS]get_weather[ARGS]{"city": "%s"}', ("mistral", "[THINK]", "[/THINK]")),
    "granite": Format(
        f"<|tool_call|>[{_JSON.format('arguments')}]\n",
        ("granite", "Here is my thought process: ", " Here is my response: "),
    ),
    "functionary_v3_1": Format('<function=get_weather>{"city": "%s"}</function>\n'),
    "functionary_v3_2": Format('>>>get_weather\n{"city": "%s"}\n>>>all\n'),
    "deepseek_v3": Format(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        '```json\n{"city": "%s"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
    "deepseek_v31": Format(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "%s"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    ),
    "deepseek_v32": Format(
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
        '<｜DSML｜parameter name="city" string="true">%s</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
    ),
    "openai": Format(
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "%s"}<|call|><|start|>assistant<|channel|>final<|message|>',
        ("openai", "<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ),
}


class _Floor:
    """A parser that tells nothing apart."""

    def push(self, text: str) -> list[Span]:
        return [Span(OutputKind.TEXT, text)]

    def finish(self) -> list[Span]:
        return []


def outputs(output_format: Format, length: int) -> dict[str, str]:
    """One output of each kind, cut to so many characters."""
    _, opener, closer = output_format.reasoning
    half = _TEXT * (length // len(_TEXT) // 2 + 1)
    thoughts = f"{opener}{half}{closer}"
    calls = f"{_TEXT}{output_format.call % 'Paris'}"
    words = _WORDS * (length // len(_WORDS) + 1)
    found = {
        "text": thoughts + half,
        "calls": thoughts[: length // 8] + closer + calls * (length // len(calls) + 1),
        "argument": output_format.call % words,
    }
    return {kind: text[:length] for kind, text in found.items()}


def halves_ns(parser: OutputParser, pieces: list[str]) -> tuple[int, int]:
    """The time of each half of the pieces."""
    middle = len(pieces) // 2
    start = time.process_time_ns()
    for piece in pieces[:middle]:
        parser.push(piece)
    between = time.process_time_ns()
    for piece in pieces[middle:]:
        parser.push(piece)
    parser.finish()
    return between - start, time.process_time_ns() - between


def main() -> None:
    """Measure all formats in turn, as often as asked."""
    parser = argument_parser(__doc__, "output_parser.{json,md}", rounds=5)
    parser.add_argument("--tokens", type=int, default=32768, help="pieces of an output (default %(default)s)")
    options = parser.parse_args()
    assert set(FORMATS) == set(TOOL_FORMATS)
    assert {one.reasoning[0] for one in FORMATS.values()} < set(REASONING_FORMATS)
    cases = {"floor, text": ("", _TEXT * (options.tokens * _PIECE // len(_TEXT) + 1))}
    for name, output_format in FORMATS.items():
        for kind, text in outputs(output_format, options.tokens * _PIECE).items():
            cases[f"{name}, {kind}"] = (name, text)
    makers = {name: ModelFormat(name, one.reasoning[0], _SPECIAL_TOKENS) for name, one in FORMATS.items()}
    times: dict[str, list[tuple[float, float, float]]] = {case: [] for case in cases}

    def fresh(name: str) -> OutputParser:
        return makers[name].parser(tools=_TOOLS, reasoning_open=False) if name else _Floor()

    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        for case, (name, text) in cases.items():
            pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
            gc.collect()
            first, second = halves_ns(fresh(name), pieces)
            whole = sum(halves_ns(fresh(name), ["", text]))
            times[case].append(((first + second) / len(pieces), second / first, whole / len(pieces)))
    figures = {
        case: dict(zip(("ns", "ratio", "whole_ns"), map(statistics.median, zip(*rounds, strict=True)), strict=True))
        for case, rounds in times.items()
    }
    rows = [
        [case, f"{one['ns']:.0f}", f"{one['ratio']:.2f}", f"{one['whole_ns']:.0f}"] for case, one in figures.items()
    ]
    report = table(["output", "ns per token", "second half / first", "ns per token, in one piece"], rows)
    result = {"benchmark": "output_parser", "tokens": options.tokens, "rounds": options.rounds, "outputs": figures}
    preface = f"`{command_line()}`\n\nOutputs of {options.tokens} tokens, with 1,000 special tokens to take out.\n\n"
    finish(options, "output_parser", "Output parsers", report, result, preface=preface)


if __name__ == "__main__":
    main()
