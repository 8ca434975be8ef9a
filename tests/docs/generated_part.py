"""The part of a page in docs/ that a program writes, between two comments.

Owns where it stands in the page. Does not know its content.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class GeneratedPart(NamedTuple):
    """The part of `page` between the comments `<!-- name: begin -->` and `<!-- name: end -->`."""

    page: Path
    name: str

    def filled(self, content: str) -> str:
        """The page with this content; ValueError unless it has both comments once."""
        begin, end = (f"<!-- {self.name}: {side} -->\n" for side in ("begin", "end"))
        before, rest = self.page.read_text().split(begin)
        _, after = rest.split(end)
        return f"{before}{begin}\n{content}{end}{after}"
