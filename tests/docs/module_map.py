"""Writes the section "Modules" of docs/architecture.md: `python -m tests.docs.module_map`.

Owns where a module's line comes from: the first sentence of a Python docstring, or of the comment that a header begins
with. Does not know what the modules do.
"""

from __future__ import annotations

import ast
import itertools
import re
from typing import TYPE_CHECKING

from tests.docs.generated_part import ROOT, GeneratedPart

if TYPE_CHECKING:
    from pathlib import Path

PART = GeneratedPart(ROOT / "docs" / "architecture.md", "modules")
_PATTERNS = ("rbee/**/*.py", "native/include/**/*.h", "native/kernels/**/*.h")
_SENTENCE = re.compile(r"(.+?)\.(?:\s|$)")


def first_sentence(text: str) -> str:
    """Its first sentence, on one line and without the full stop."""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    match = _SENTENCE.match(paragraph)
    return match.group(1) if match else paragraph


def description(path: Path) -> str:
    """The line of one module."""
    source = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(source)) or ""
    else:
        comment = itertools.takewhile(lambda line: line.startswith("//"), source.splitlines())
        text = "\n".join(line.removeprefix("//").strip() for line in comment)
    return first_sentence(text)


def section() -> str:
    """A table per folder, folders and modules in order."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(path for pattern in _PATTERNS for path in ROOT.glob(pattern)):
        folders.setdefault(path.parent, []).append(path)
    lines = []
    for folder, paths in folders.items():
        lines += [f"### {folder.relative_to(ROOT)}", "", "| module | is |", "|---|---|"]
        lines += [f"| `{path.name}` | {text} |" for path in paths if (text := description(path))]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PART.page.write_text(PART.filled(section()))
