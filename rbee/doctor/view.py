"""Shows a report on a terminal, or as plain text where there is none. Does not know what the findings mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rbee.doctor.report import Report

_PLAIN_WIDTH = 1000  # of text that goes elsewhere than to a terminal: lines stay whole
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


def render(report: Report) -> None:
    """Print `report` to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    console.print(Group(_table(report), Text(), _verdict(report)))


def _table(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, finding in report.findings.items():
        label = Text(name.replace("_", " "), "bold")
        table.add_row(label, Text(finding.status, _STYLES[finding.status]), Text(finding.summary))
        if finding.advice:
            table.add_row("", "", Text(finding.advice))
    return table


def _verdict(report: Report) -> Text:
    errors = [name.replace("_", " ") for name, finding in report.findings.items() if finding.status == "error"]
    if errors:
        return Text(f"No server can run here: {', '.join(errors)}.", _STYLES["error"])
    return Text("A server can run here.")
