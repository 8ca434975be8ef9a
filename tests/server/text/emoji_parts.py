"""Which emoji at the end of a text may still change, by Unicode's properties: the server's table is held to these."""

from __future__ import annotations

import regex

_MORE = "[\u200d\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
_HALF = "[\U0001f1e6-\U0001f1ff]"
_PICTOGRAPH = r"\p{Extended_Pictographic}"
# From its beginning; only two halves of a flag are whole: anything else may go on.
_EMOJI = regex.compile(rf"(?P<whole>{_HALF}{{2}})|{_PICTOGRAPH}(?:{_MORE}|(?<=\u200d){_PICTOGRAPH})*|{_HALF}{_MORE}*")


def may_change(text: str) -> str:
    """The emoji at the end of a text that a further character might change."""
    at_end = ""
    for found in _EMOJI.finditer(text):
        at_end = found[0] if found.end() == len(text) and not found["whole"] else ""
    return at_end
