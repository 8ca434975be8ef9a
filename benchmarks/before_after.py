"""What a change costs: one of these programs from two checkouts, in turn, on one machine.

    python benchmarks/before_after.py ../before bench_calls.py --runs 5 -- --calls 5000

`../before` is a checkout of the commit before, with its own .venv; "after" is the checkout of this file. Every second
run begins with the other side. Every number of the JSON lines is compared under its path, if `--only` (a regular
expression) finds it: the median of each side, the ratio of the medians, and the spread of "before" against itself,
(highest - lowest) / median. A ratio within that spread shows nothing. A table on stderr, one JSON line on stdout.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from program import argument_parser, finish, progress
from saving import table

if TYPE_CHECKING:
    from collections.abc import Iterator

AFTER = Path(__file__).resolve().parent.parent


def numbers_of(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a JSON value, with its path."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield path, float(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_of(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers_of(inner, f"{path}[{index}]")


def run(checkout: Path, program: str, arguments: list[str]) -> dict[str, float]:
    """The numbers of one run's JSON line."""
    command = [str(checkout / ".venv/bin/python"), str(checkout / "benchmarks" / program), *arguments]
    finished = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return dict(numbers_of(json.loads(finished.stdout.splitlines()[-1])))


def compared(before: list[dict[str, float]], after: list[dict[str, float]], only: str) -> list[dict[str, Any]]:
    """A row for each number that all runs have and `only` finds."""
    shared = set(before[0]).intersection(*before, *after)
    rows = []
    for path in before[0]:
        if path not in shared or not re.search(only, path):
            continue
        old, new = [one[path] for one in before], [one[path] for one in after]
        middle = statistics.median(old)
        if not middle:
            continue
        rows.append(
            {
                "figure": path,
                "before": middle,
                "after": statistics.median(new),
                "ratio": round(statistics.median(new) / middle, 3),
                "spread": round((max(old) - min(old)) / abs(middle), 3),
            }
        )
    return rows


def main() -> None:
    """Run the program from both checkouts in turn, and compare."""
    parser = argument_parser(__doc__, "before_after_PROGRAM.{json,md}")
    parser.add_argument("before", type=Path, help="the checkout to compare with")
    parser.add_argument("program", help="its name in benchmarks/")
    parser.add_argument("--runs", type=int, default=3, help="of each side (default %(default)s)")
    parser.add_argument("--only", default="", help="a regular expression for the paths of the figures to compare")
    given, arguments = sys.argv[1:], []  # what is behind -- is the program's
    if "--" in given:
        given, arguments = given[: given.index("--")], given[given.index("--") + 1 :]
    options = parser.parse_args(given)
    results: dict[Path, list[dict[str, float]]] = {options.before.resolve(): [], AFTER: []}
    for number in range(options.runs):
        order = list(results) if number % 2 == 0 else list(reversed(results))
        for checkout in order:
            progress(f"run {number + 1} of {options.runs}: {'after' if checkout == AFTER else 'before'}")
            results[checkout].append(run(checkout, options.program, arguments))
    before, after = results.values()
    rows = compared(before, after, options.only)
    columns = ["figure", "before", "after", "ratio", "spread"]
    cells = [[row["figure"], *(f"{row[column]:.4g}" for column in columns[1:])] for row in rows]
    result = {"program": options.program, "arguments": arguments, "runs": options.runs, "figures": rows}
    name = f"before_after_{options.program.removesuffix('.py').removeprefix('bench_')}"
    finish(options, name, f"{options.program} before and after", table(columns, cells), result)


if __name__ == "__main__":
    main()
