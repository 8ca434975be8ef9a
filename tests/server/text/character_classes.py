"""Writes native/include/rbee/character_classes.h: which characters are letters, numbers, white space, and digits.

    python -m tests.server.text.character_classes

The `tokenizers` library is asked, whose versions of Unicode count: run this again when a newer one knows more. Its
regular expressions and its step Digits know different ones.
test_byte_pairs.py compares the two.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

HEADER = Path(__file__).parents[3] / "native" / "include" / "rbee" / "character_classes.h"
_SURROGATES = range(0xD800, 0xE000)
_END = 0x40000  # of the planes that have letters, numbers or white space
_CHARACTERS = "".join(chr(code) for code in range(_END) if code not in _SURROGATES)

_BEFORE = """\
// Which characters are letters, numbers, white space, and digits for the step Digits.
//
// Made by tests/server/text/character_classes.py: do not edit.

#pragma once

#include <cstdint>

namespace rbee {

/// The first and the last code point of each run, in order.
struct CharacterRun {
    std::uint32_t first, last;
};

// clang-format off
"""
_AFTER = """\
// clang-format on

}  // namespace rbee
"""


def _found(regex: str) -> list[tuple[int, int]]:
    """From where to where in `_CHARACTERS` the library finds these."""
    between = pre_tokenizers.Split(Regex(regex), "removed").pre_tokenize_str(_CHARACTERS)
    edges = [0, *(edge for _, places in between for edge in places), len(_CHARACTERS)]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def _digits() -> list[tuple[int, int]]:
    """The same for the step Digits: of the pieces that it makes every second one has digits."""
    pieces = [places for _, places in pre_tokenizers.Digits().pre_tokenize_str(_CHARACTERS)]
    return pieces[1::2]  # the first one begins with U+0000


def _array(name: str, found: list[tuple[int, int]]) -> str:
    runs = " ".join(f"{{0x{ord(_CHARACTERS[start]):X},0x{ord(_CHARACTERS[end - 1]):X}}}," for start, end in found)
    return f"inline constexpr CharacterRun {name}[] = {{\n{textwrap.fill(runs, 120)}\n}};\n"


def content() -> str:
    """Of the header."""
    classes = {"kLetters": r"\p{L}+", "kNumbers": r"\p{N}+", "kSpaces": r"\s+"}
    arrays = {name: _found(regex) for name, regex in classes.items()} | {"kDigits": _digits()}
    return _BEFORE + "\n".join(_array(*each) for each in arrays.items()) + _AFTER


def main() -> None:
    """Write it."""
    HEADER.write_text(content())


if __name__ == "__main__":
    main()
