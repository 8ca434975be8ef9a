"""How a result is kept: Markdown for people, the same as JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(name: str, title: str, text: str, result: dict[str, Any]) -> None:
    """Write results/NAME.md (title, text and the machine) and results/NAME.json (`result`, which has `machine`)."""
    RESULTS.mkdir(exist_ok=True)
    facts = "\n".join(f"* {key}: {value}" for key, value in result["machine"].items())
    (RESULTS / f"{name}.md").write_text(f"# {title}\n\n{text}\n\n## Machine\n\n{facts}\n")
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
