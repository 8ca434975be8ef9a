"""The table in docs/compat.md: what each client of `make compat` saw, and whether it is right.

Owns the rows and how they are written. Does not know how a client is run, or what is expected of it.
"""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, NamedTuple

from rbee import __version__
from tests.compat.expected import differences
from tests.docs.generated_part import ROOT, GeneratedPart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.compat.expected import Facts
    from tests.compat.running import Client, Seen

PART = GeneratedPart(ROOT / "docs" / "compat.md", "results")
_LONGEST = 300  # characters of a result


class Row(NamedTuple):
    """Of the table; `is_good` is for programs."""

    client: str
    version: str
    call: str
    compared: str
    result: str
    is_good: bool = True

    def __str__(self) -> str:
        cells = (" ".join(cell.split()).replace("|", "\\|")[:_LONGEST] for cell in self[:-1])
        return f"| {' | '.join(cells)} |"


def rows_of(client: Client, seen: Seen, expected: Mapping[str, Facts]) -> list[Row]:
    """One for each call, and one for what else went wrong."""
    rows = []
    for observation in seen.observations:
        wrong = "; ".join(differences(expected[observation["kind"]], observation["saw"]))
        compared = ", ".join(observation["saw"])
        rows.append(
            Row(client.title, seen.version, observation["call"], compared, wrong or "as expected", is_good=not wrong)
        )
    missing = client.kinds - {observation["kind"] for observation in seen.observations}
    if seen.failure or missing:
        reason = seen.failure or f"not seen: {', '.join(sorted(missing))}"
        rows.append(Row(client.title, seen.version, "", "", reason, is_good=False))
    return rows


def content(rows: Sequence[Row]) -> str:
    """The generated part of the page."""
    today = dt.datetime.now(tz=dt.UTC).date()
    head = Row("client", "version", "call", "compared", "result")
    rule = Row("---", "---", "---", "---", "---")
    lines = "\n".join(map(str, (head, rule, *rows)))
    return f"{today}, rbee {__version__}, Python {sys.version.split()[0]}.\n\n{lines}\n\n"
