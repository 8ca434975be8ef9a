"""What every program here does around its measurement: common options, progress, and the result at the end.

Owns where output goes: progress and the report to stderr, one JSON line to stdout, both into results/ with --save.
Does not know what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from typing import Any

from machine import describe
from saving import save

_OPEN_FILES = 8192
_UNDISTURBED = 0.95  # drains per step


def argument_parser(doc: str | None, results: str, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with --save, and with --rounds if a default for it is given.

    Args:
        doc: the program's docstring, shown by --help.
        results: what --save writes, such as "calls.{json,md}".
        rounds: the default number of rounds.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every start of a server compiles all of its modules
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{results}")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="rounds over everything (default %(default)s)")
    return parser


def integers(text: str) -> list[int]:
    """Type of an option: comma-separated integers."""
    return [int(number) for number in text.split(",")]


def numbers(text: str) -> list[float]:
    """Type of an option: comma-separated numbers."""
    return [float(number) for number in text.split(",")]


def core_pair(parser: argparse.ArgumentParser, text: str, cores: list[int]) -> tuple[int, ...] | None:
    """The two cores that --cpus names; None for `any`. Anything else ends the program with a usage error."""
    if text == "any":
        return None
    chosen = tuple(integers(text))
    if len(chosen) != 2 or not set(chosen) <= set(cores):
        parser.error(f"--cpus: `any`, or two of {', '.join(map(str, cores))}")
    return chosen


def allow_many_files() -> None:
    """Raise the limit on open files to 8,192, or to the hard limit if that is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, _OPEN_FILES)), hard))


def progress(text: str) -> None:
    """One line on stderr while the measurement runs."""
    print(text, file=sys.stderr)


def rotated(ways: list[str], number: int) -> list[str]:
    """The contenders in the order of a round: another one begins each."""
    first = number % len(ways)
    return ways[first:] + ways[:first]


def disturbed(drains_per_step: dict[str, float]) -> str:
    """A paragraph that names the ways whose steps went out several at a time; empty, if there are none."""
    late = [name for name, drains in drains_per_step.items() if drains < _UNDISTURBED]
    if not late:
        return ""
    return f"\n\nNOT COMPARABLE, because several steps went out together: {', '.join(late)}."


def command_line() -> str:
    """The command that made a result, as a report quotes it."""
    return f"python {' '.join(sys.argv)}"


def finish(
    options: argparse.Namespace, name: str, title: str, report: str, result: dict[str, Any], *, preface: str = ""
) -> None:
    """Describe the machine, print the report and the JSON line, and save both if --save was given.

    Args:
        options: the parsed options; `save` is used.
        name: of the files in results/.
        title: first line of the Markdown file.
        report: Markdown for stderr and the file.
        result: what the JSON line holds; "machine" is added. Facts that it already has under "machine" are kept.
        preface: text that only the file has, right before the report.
    """
    result = {**result, "machine": describe() | result.get("machine", {})}
    print(report, file=sys.stderr)
    if options.save:
        save(name, title, preface + report, result)
    print(json.dumps(result))
