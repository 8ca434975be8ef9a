# ruff: noqa: PYI021 - this file is where the native module is documented
"""Which merge makes each piece of a vocabulary, in C++; see native/include/rbee/merges.h."""

def merges_of(pieces: list[str]) -> list[str]:
    """The merges of a vocabulary that has none of its own: for each piece, the one that can happen, as "left right".

    Args:
        pieces: best first, no two the same, and no space in them.

    Returns:
        Best first. Left out are pieces that no merge makes: single characters, and what the text of a better piece
        always takes apart.
    """
