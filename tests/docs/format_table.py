"""Writes the tables of formats in docs/tools.md: `python -m tests.docs.format_table`.

Owns their columns. The names, models and marks are those of `rbee.server.text.output.formats`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee.server.text.output.formats import REASONING_FORMATS, TOOL_FORMATS
from tests.docs.generated_part import ROOT, GeneratedPart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rbee.server.text.output.formats import Known

PART = GeneratedPart(ROOT / "docs" / "tools.md", "formats")


def tables() -> str:
    """A table of the formats of calls, and one of those of reasoning."""
    return f"{_table('--tool-parser', TOOL_FORMATS)}\n{_table('--reasoning-parser', REASONING_FORMATS)}"


def _table(option: str, formats: Mapping[str, Known[Any]]) -> str:
    lines = [f"| `{option}` | also | models | if the template has |", "|---|---|---|---|"]
    for name, known in formats.items():
        others = ", ".join(map(_code, known.other_names))
        marks = "; or ".join(" and ".join(map(_code, marks)) for marks in known.marks)
        lines.append(f"| `{name}` | {others} | {known.models} | {marks} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """A text as code in a cell."""
    fence, space = ("``", " ") if "`" in text else ("`", "")
    escaped = text.replace("|", "\\|")
    return f"{fence}{space}{escaped}{space}{fence}"


if __name__ == "__main__":
    PART.page.write_text(PART.filled(tables()))
