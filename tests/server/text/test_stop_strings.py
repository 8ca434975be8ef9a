"""Stop strings: nothing of them is shown, and nothing else is withheld."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.text.stop_strings import StopStrings

ALPHABET = "ab"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4)


def show(stops, pieces):
    """The text shown for `pieces`, and whether a stop string ended it."""
    finder = StopStrings(stops)
    shown = ""
    for piece in pieces:
        text, complete = finder.push(piece)
        shown += text
        if complete:
            return shown, True
    return shown + finder.flush(), False


def by_definition(stops, text):
    """The same, looking at every prefix of the whole text."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(STOPS, st.lists(st.text(ALPHABET, max_size=6), max_size=8))
def test_cutting_does_not_matter(stops, pieces):
    """However a text is cut into pieces, what is shown is what the definition says."""
    assert show(stops, pieces) == by_definition(stops, "".join(pieces))


@given(STOPS, st.lists(st.text(ALPHABET, max_size=6), max_size=8))
def test_the_one_that_was_found_is_known(stops, pieces):
    """It is the longest that is complete where the text ends; None without any."""
    finder = StopStrings(stops)
    shown, complete = "", False
    for piece in pieces:
        text, complete = finder.push(piece)
        shown += text
        if complete:
            break
    assert (finder.complete is not None) == complete
    if finder.complete is not None:
        assert finder.complete in stops
        assert "".join(pieces).startswith(shown + finder.complete)


@given(STOPS, st.text(ALPHABET, max_size=20))
def test_withholds_what_can_still_be_a_stop_string_and_nothing_else(stops, text):
    """What is withheld is the longest end of the text that begins a stop string."""
    finder = StopStrings(stops)
    shown = ""
    for end, character in enumerate(text, start=1):
        piece, complete = finder.push(character)
        if complete:
            return
        shown += piece
        beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
        withheld = max((text[:end][-length:] for length in range(1, end + 1) if text[:end][-length:] in beginnings),
                       key=len, default="")  # fmt: skip
        assert shown == text[: end - len(withheld)]


@given(STOPS, st.lists(st.text(ALPHABET, max_size=6), max_size=8))
def test_included_it_ends_the_text_and_withholds_nothing(stops, pieces):
    """All is shown at once, up to the end of the one that is complete first."""
    finder, text = StopStrings(stops, include=True), "".join(pieces)
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    shown = ""
    for number, piece in enumerate(pieces, start=1):
        added, complete = finder.push(piece)
        shown += added
        if complete:
            assert shown == text[: ends[0]]
            return
        assert shown == "".join(pieces[:number])
    assert not ends
    assert finder.flush() == ""


def test_the_longer_of_two_that_are_complete_together_counts():
    """'ab' began before 'b': showing its 'a' would show a part of a stop string."""
    for stops in (["b", "ab"], ["ab", "b"]):
        assert show(stops, ["xa", "b"]) == ("x", True)


@pytest.mark.parametrize(
    ("stops", "pieces", "complete"),
    [
        (["ab", "cd"], ["x", "c", "d"], "cd"),
        (["ab", "cd"], ["xcdy"], "cd"),
        (["b", "ab"], ["ab"], "ab"),
        (["ab"], ["a", "x"], None),
        (["ab"], [], None),
    ],
)
def test_the_one_that_was_found_has_a_name(stops, pieces, complete):
    """Of two at the same character it is the longer one; until one is complete there is none."""
    strings = StopStrings(stops)
    for piece in pieces:
        assert strings.complete is None
        strings.push(piece)
    assert strings.complete == complete
