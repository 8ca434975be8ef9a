"""What the native drain writes for a stream: whole frames in which `Slot` bytes stand for what varies.

Owns which frames a stream has. Does not know protocols, which render them, or `Outlet`, which compiles them.
"""

from __future__ import annotations

from typing import NamedTuple


class LastFrames(NamedTuple):
    """The last frame of a stream, for one finish reason. One of the four is written."""

    first_last: bytes  # has text, and no frame had any before
    next_last: bytes  # has text, and so had earlier frames
    last: bytes  # has no text after frames with text: a stop token, or an end without a token. TEXT is not allowed
    empty: bytes  # has no text, and no frame had any. TEXT is not allowed


class FrameTemplate(NamedTuple):
    """All frames of one stream. TEXT is allowed where there is text, CACHED_TOKENS in the last frames and in `end`.

    Another end, or a deadline before the first token, writes only the remaining text, as `first` or `next`.
    """

    first: bytes  # the first frame with text, if it is not the last
    next: bytes  # a further one
    stop: LastFrames  # the model, or a stop token, ended the stream
    length: LastFrames  # a limit ended it
    deadline: LastFrames  # its deadline ended it after at least one token
    end: bytes  # follows the last frame of these three; if it is empty, the caller writes what does
    first_index: int = 0  # the INDEX of the first frame with text
