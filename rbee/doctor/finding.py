"""What was found about one thing, and the little files of /proc and /sys in which such things stand.

Owns the shape of a finding and how a file that is missing is read. Does not know what any of them means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

Status: TypeAlias = Literal["ok", "note", "warning", "error"]  # in rising order; error: no server can run


class Finding(msgspec.Struct, frozen=True):
    """One thing; its name is its key in the report."""

    value: dict[str, Any]  # plain JSON; sizes in bytes, None for what is not known or not limited
    summary: str  # the value, for people
    status: Status = "ok"
    advice: str | None = None  # effect and remedy; None only if the status is ok


def text_of(path: Path) -> str:
    """The file without blanks at its ends; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def chosen_word(path: Path) -> str | None:
    """The word in brackets, of a file such as "always [madvise] never"; None if there is none."""
    _, _, rest = text_of(path).partition("[")
    word, bracket, _ = rest.partition("]")
    return word if bracket else None


def numbers_in(ranges: str) -> set[int]:
    """The numbers of a list such as "0-3,8" (cpuset(7), list format); empty if it is none."""
    numbers: set[int] = set()
    try:
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    except ValueError:
        return set()
    return numbers


def size(number: int | None) -> str:
    """Bytes for people; None is no limit."""
    if number is None:
        return "unlimited"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"
