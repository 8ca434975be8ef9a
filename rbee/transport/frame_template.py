"""What the native drain writes for a stream: whole frames in which `Slot` bytes stand for what varies.

Owns which frames a stream has. Does not know any protocol; a protocol renders them, and `Outlet` compiles them.
"""

from __future__ import annotations

from typing import NamedTuple


class LastFrames(NamedTuple):
    """The last frame of a stream, for one finish reason. One of the four is written."""

    first_last: bytes
    """With text, and no frame had any before."""
    next_last: bytes
    """With text, after other text frames."""
    last: bytes
    """Without text, after text frames: a stop token, or an end that came by itself. TEXT is not allowed."""
    empty: bytes
    """Without text, and no frame had any. TEXT is not allowed."""


class FrameTemplate(NamedTuple):
    """All frames of one stream. TEXT is allowed where there is text, CACHED_TOKENS in the last frames and in `end`.

    An end for any other reason, and a deadline before the first token, write only the text that is left, as `first` or
    `next`.
    """

    first: bytes
    """The first frame with text, while more may come."""
    next: bytes
    """A further one."""
    stop: LastFrames
    """The model, or a stop token, ended the stream."""
    length: LastFrames
    """A limit ended it."""
    deadline: LastFrames
    """Its deadline ended it after at least one token."""
    end: bytes
    """Follows the last frame of any of the three. May be empty."""
