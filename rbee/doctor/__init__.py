"""`rbee doctor`: what this machine and this installation offer a server, and what limits them.

Owns the order: examine, print, exit code. Does not know what is examined.
"""

from __future__ import annotations

import click
import msgspec

from rbee.doctor.report import examine
from rbee.doctor.view import render


def run(*, as_json: bool) -> int:
    """Print the findings, for people or as one JSON object. The exit code: 0, or 2 if no server can run here."""
    report = examine()
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        render(report)
    return 0 if report.can_serve else 2
