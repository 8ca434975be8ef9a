"""The identity of a source file. Does not read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def file_identity(path: Path) -> str:
    """Path, size and time of change, as make compares them: hashing gigabytes at every start is too slow."""
    stat = path.stat()
    return f"{path}|{stat.st_size}|{stat.st_mtime_ns}"
