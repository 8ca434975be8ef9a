"""Writes include/rbee/character_classes.h: which characters are letters, numbers and white space.

    python native/character_classes.py

The `tokenizers` library is asked, whose version of Unicode counts: run this again when a newer one knows more.
tests/server/text/test_byte_pairs.py compares the two for every character.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

_HEADER = Path(__file__).parent / "include" / "rbee" / "character_classes.h"
_SURROGATES = range(0xD800, 0xE000)
_CHARACTERS = "".join(chr(code) for code in range(0x110000) if code not in _SURROGATES)

_BEFORE = """\
// Which characters are letters, numbers and white space. Made by native/character_classes.py: do not edit.

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


def _runs(regex: str) -> list[tuple[int, int]]:
    """From which to which code point the library finds these."""
    between = pre_tokenizers.Split(Regex(regex), "removed").pre_tokenize_str(_CHARACTERS)
    edges = [0, *(edge for _, places in between for edge in places), len(_CHARACTERS)]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(ord(_CHARACTERS[start]), ord(_CHARACTERS[end - 1])) for start, end in pairs if start < end]


def _array(name: str, regex: str) -> str:
    runs = " ".join(f"{{0x{first:X},0x{last:X}}}," for first, last in _runs(regex))
    return f"inline constexpr CharacterRun {name}[] = {{\n{textwrap.fill(runs, 120)}\n}};\n"


def main() -> None:
    """Write it."""
    arrays = [
        _array(name, regex)
        for name, regex in (("kLetters", r"\p{L}+"), ("kNumbers", r"\p{N}+"), ("kSpaces", r"\s+"))
    ]
    _HEADER.write_text(_BEFORE + "\n".join(arrays) + _AFTER)


if __name__ == "__main__":
    main()
