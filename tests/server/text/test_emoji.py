"""Emoji that a text may end in: they wait until they are whole, and nothing else does."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.transport import EmojiHold
from tests.server.text.emoji_parts import may_change

WHOLE = ["🐝", "👋🏽", "👩‍👩‍👧", "❤️", "❤️‍🔥", "🏳️‍🌈", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👨🏻‍❤️‍💋‍👨🏿", "🇩🇪", "©️", "‼", "🫱🏻‍🫲🏿"]
CHARACTERS = "a1é海 \u0301\u200d\ufe0f\u20e3🐝👋❤©🏴🏽🇩🇪🔥\U000e0067\U000e007f"


def test_pictographs_are_unicodes() -> None:
    """Every character of the planes that have some waits, or passes at once."""
    for code in itertools.chain(range(0xD800), range(0xE000, 0x20000), range(0xE0000, 0xE1000)):
        character = chr(code)
        passes = EmojiHold().push(character) == character
        assert passes is not bool(may_change(character)), hex(code)


@pytest.mark.parametrize("emoji", WHOLE)
def test_no_emoji_is_cut(emoji: str) -> None:
    """Not character by character; the letter behind it shows that it is whole. Of a flag that is known before."""
    hold = EmojiHold()
    pushed = [hold.push(character) for character in "a" + emoji + "b"]
    end = [emoji, "b"] if emoji == "🇩🇪" else ["", emoji + "b"]
    assert pushed == ["a", *[""] * (len(emoji) - 1), *end]
    assert hold.flush() == ""


def test_the_end_of_a_text_shows_what_waits() -> None:
    """Then nothing waits."""
    hold = EmojiHold()
    assert (hold.push("Bees 🐝"), hold.push(""), hold.flush(), hold.flush()) == ("Bees ", "", "🐝", "")
    assert hold.push("🇩") + hold.push("!") == "🇩!"


def test_what_waits_is_bounded() -> None:
    """An emoji that never ends is cut: 64 bytes are longer than any that Unicode recommends."""
    hold = EmojiHold()
    shown = [hold.push("\u200d") for _ in [hold.push("👩")] + [0] * 40]
    assert max(map(len, shown)) == 21
    assert "".join(shown) + hold.flush() == "👩" + "\u200d" * 41


@given(pieces=st.lists(st.text(CHARACTERS, max_size=3), max_size=5))
def test_only_an_emoji_at_the_end_waits(pieces: list[str]) -> None:
    """However the text is cut; nothing is lost or changed. These have less than 64 bytes."""
    hold, shown, text = EmojiHold(), "", ""
    for piece in pieces:
        shown += hold.push(piece)
        text += piece
        waits = may_change(text)
        assert shown + waits == text
    assert shown + hold.flush() == text
