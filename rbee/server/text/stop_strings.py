"""Stop strings, matched in a text that arrives in pieces.

Owns what may be shown while a match is still possible. Knows neither tokens nor frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopStrings:
    """Finds the stop string that is complete first, however the text is cut into pieces.

    The automaton of Knuth, Morris and Pratt, one state per stop string: after each character the state is the length
    of the longest end of the text that begins that stop string. Exactly the longest of those ends is withheld: no part
    of a stop string is shown, and nothing else waits. If two are complete at the same character the longer one counts,
    which began first.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.complete: str | None = None  # the one that was found

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string is complete (nothing may be pushed after that).

        With `may_end` False one that `text` completes is ordinary text.
        """
        pending = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            complete = 0
            for index, (stop, borders) in enumerate(self._patterns):
                length = self._matched[index]
                while length and stop[length] != character:
                    length = borders[length - 1]
                length += stop[length] == character
                if length == len(stop):
                    if may_end:
                        complete = max(complete, length)
                    else:
                        length = borders[-1]
                self._matched[index] = length
            if complete:
                self.complete = pending[end - complete : end]
                return pending[: end - complete], True
        shown = len(pending) - max(self._matched)
        self._held = pending[shown:]
        return pending[:shown], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _borders(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest proper prefix that also ends it."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        length += pattern[index] == pattern[length]
        borders[index] = length
    return borders
