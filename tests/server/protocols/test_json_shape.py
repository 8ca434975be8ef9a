"""What a JSON text holds is counted before it is decoded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.errors import Refusal
from rbee.server.protocols import json_shape
from rbee.server.protocols.fields import decode_object
from rbee.server.protocols.json_shape import (
    MAX_DIGITS,
    MAX_ESCAPES,
    MAX_ITEMS,
    MAX_VALUES,
    UNCOUNTED_BYTES,
    check_shape,
)


def padded(text: bytes) -> bytes:
    """As much of it as is counted."""
    return text + b" " * (UNCOUNTED_BYTES + 1 - len(text))


def is_refused(text: bytes) -> bool:
    """Whether it holds too much."""
    try:
        check_shape(text)
    except Refusal:
        return True
    return False


def items_in(value) -> int:
    """Objects, lists and strings, names included."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(items_in, value.values()))
    if isinstance(value, list):
        return 1 + sum(map(items_in, value))
    return int(isinstance(value, str))


@pytest.mark.parametrize(
    ("item", "most"),
    [
        (b"{}", MAX_ITEMS - 1),
        (b"[]", MAX_ITEMS - 1),
        (b'""', MAX_ITEMS - 1),
        (b'"\\\\"', MAX_ITEMS - 1),
        (b'"\\",[{"', MAX_ITEMS - 1),
        (b'{"a":0}', (MAX_ITEMS - 1) // 2),
        (b"0", MAX_VALUES + 1),
        (b"-1.5e-300", MAX_VALUES + 1),
        (b"null", MAX_VALUES + 1),
    ],
)
def test_bounds(item, most):
    """So many of each kind pass, and no more."""
    assert not is_refused(padded(b"[" + b",".join([item] * most) + b"]"))
    assert is_refused(padded(b"[" + b",".join([item] * (most + 2)) + b"]"))


@pytest.mark.parametrize("text", ["a" * 10**6, 'a,[{:"\\' * 50_000, "\\" * 10**5, "\u00e9\n" * 10**5, "0" * 10**6])
@pytest.mark.parametrize("before", range(4))
def test_the_text_of_a_string_is_not_counted(text, before):
    """Whatever is in it, and wherever the pieces end that are looked at."""
    assert not is_refused(json.dumps({"a" * before: text}).encode())


def test_long_numbers_are_refused():
    """Wherever they stand, but in a string."""
    assert not is_refused(padded(b'[1.%b, "%b"]' % (b"5" * (MAX_DIGITS - 1), b"5" * 1000)))
    assert is_refused(padded(b"[1.%b]" % (b"5" * MAX_DIGITS)))
    assert is_refused(b" " * UNCOUNTED_BYTES + b"1234567890" * 20)


def test_many_escapes_are_refused():
    """A string of nothing else takes a decoder as long as many values."""
    assert not is_refused(json.dumps("\n" * MAX_ESCAPES).encode())
    assert is_refused(json.dumps("\n" * (MAX_ESCAPES + 1)).encode())


def test_small_texts_are_not_counted():
    """Nothing that fits into them takes long."""
    assert not is_refused(b"[" * UNCOUNTED_BYTES)


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.text(st.sampled_from('a"\\,[{:\n\u00e9')),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a"\\,[{:')), inner),
        max_leaves=30,
    ),
    st.integers(1, 20),
    st.booleans(),
)
def test_the_count_is_right_wherever_pieces_end(inner, piece, ascii_only):
    """With pieces of a few bytes, and the bound at the true number or one below it."""
    value = [inner]
    text = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_shape, "UNCOUNTED_BYTES", 0)
        patch.setattr(json_shape, "_PIECE", piece)
        patch.setattr(json_shape, "MAX_ITEMS", items_in(value))
        assert not is_refused(text)
        patch.setattr(json_shape, "MAX_ITEMS", items_in(value) - 1)
        assert is_refused(text)


def test_numbers_that_are_hard_to_round_are_right():
    """They are read one by one, so that others can run in between."""
    text = b'{"a": [1.2345678901234567e-300, 2.2250738585072011e-308, 0.1, -0.0, 1e400]}'
    assert decode_object(text) == json.loads(text)
