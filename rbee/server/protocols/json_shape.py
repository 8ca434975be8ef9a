"""How much a JSON text holds, counted before anything decodes it.

Owns the count and its bounds. A decoder keeps Python's lock until it is done, and what takes it long are values rather
than bytes: a million empty objects fit into two megabytes. The count takes its time in small steps, between which other
threads run. Does not judge whether the text is JSON: what is not ends a decoder where it stops being so, and up to
there the count is right.
"""

from __future__ import annotations

from rbee.server.errors import Refusal, invalid

UNCOUNTED_BYTES = 32 * 1024  # of a text that can hold too little to take a decoder long
MAX_ITEMS = 32_768  # objects, lists and strings, names of fields included: a decoder takes up to 0.1 us for each
MAX_VALUES = 150_000  # in lists and objects, of all kinds: a small number takes it 30 ns
MAX_ESCAPES = 500_000  # in strings: for each it takes 4 ns, or 9 for one of a character by its number
MAX_DIGITS = 64  # of a number: for thousands of them the time grows with their square

_PIECE = 16 * 1024  # bytes, for which the slowest step takes some 0.5 ms
_DIGITS = b"0123456789"
_AS_ONE_DIGIT = bytes.maketrans(_DIGITS, b"0" * 10)
_OTHERS = bytes(set(range(256)) - set(b'",[{' + _DIGITS))
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)


def check_shape(text: bytes) -> None:
    """Raise Refusal for a text that holds more than one of these bounds."""
    if len(text) <= UNCOUNTED_BYTES:
        return
    quotes, brackets, values, escapes, start = 0, 0, 0, 0, 0
    while start < len(text):
        piece = text[start : start + _PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape is not cut in two
            piece = text[start : start + _PIECE + 1]
        start += len(piece)
        escapes += piece.count(b"\\")
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_AS_ONE_DIGIT, _OTHERS).split(b'"')
        outside = b"".join(parts[quotes % 2 :: 2])
        quotes += len(parts) - 1
        brackets += outside.count(b"[") + outside.count(b"{")
        values += outside.count(b",")
        if (quotes + 1) // 2 + brackets > MAX_ITEMS:
            raise _too_much(f"{MAX_ITEMS} objects, lists and strings")
        if values > MAX_VALUES:
            raise _too_much(f"{MAX_VALUES} values")
        if escapes > MAX_ESCAPES:
            raise _too_much(f"{MAX_ESCAPES} escapes in strings")
        if _LONG_NUMBER in outside:
            raise _too_much(f"{MAX_DIGITS} digits in a number")


def _too_much(bound: str) -> Refusal:
    return invalid(None, f"The request body has more than {bound}; send less in one request.", code="too_many_values")
