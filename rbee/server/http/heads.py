"""What a request's head must be beyond what the parser checks.

Owns these rules, all of RFC 9112, and what is said where one is broken: another server that stands before this one must
not read a request otherwise. Does not know routes.
"""

from __future__ import annotations

import re

import httptools

from rbee.server.errors import Refusal, RefusalKind

_VERSIONS = frozenset({"1.0", "1.1"})
_NAMED = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)

_OTHER_LINE = re.compile(rb"[A-Z_-]+ +[^ \n]+ +(?:RTSP|ICE)/")
_OTHER = "It is one of RTSP or ICE"
_SPACE = ord(" ")  # no byte below it begins a request
_EMPTY_LINES = re.compile(rb"[\r\n]*")
_EMPTY_LINE = b"\r\n\r\n"  # with the end of the line before it; the parser takes no other spelling


class UnreadableHeadError(ValueError):
    """Says why a head is none of a request that can be served."""


def checked_target(target: bytes, headers: list[tuple[bytes, bytes]], version: str) -> bytes:
    """The target without the server's name, which takes Host's place in `headers` (3.2.2); names in lower case.

    UnreadableHeadError: another version, a fragment, or a body in a transfer coding beside chunked.
    """
    if version not in _VERSIONS:
        raise UnreadableHeadError(f"It is one of version {version}")
    if b"#" in target:
        raise UnreadableHeadError("A target has no fragment")
    for name, value in headers:
        if name == b"transfer-encoding" and any(
            coding.strip().lower() not in (b"", b"chunked") for coding in value.split(b",")
        ):
            raise UnreadableHeadError("The only Transfer-Encoding is chunked")
    named = None if target.startswith(b"/") else _NAMED.fullmatch(target)
    if named is None:
        return target
    authority, rest = named.groups()
    places = [place for place, (name, _) in enumerate(headers) if name == b"host"]
    if len(places) == 1:
        headers[places[0]] = (b"host", authority)
    elif not places and version == "1.0":
        headers.append((b"host", authority))
    return rest if rest.startswith(b"/") else b"/" + rest


def body_length(headers: list[tuple[bytes, bytes]]) -> int:
    """How long the body of a request is that the parser has taken; 0 also where its chunks will say so."""
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


class Cuts:
    """Where what comes of a connection is cut for the parser: each request begins a part of its own.

    The parser is llhttp. It takes request lines of RTSP and ICE too, and does not tell. They count where a request
    begins; elsewhere, as in a body, they are text. A body whose length is known is not for this: it is not looked at.
    """

    __slots__ = ("_last", "_line")

    def __init__(self) -> None:
        self._line: bytes | None = b""  # of a request, until it is whole
        self._last = b""  # the last bytes of the request that the parser has got

    def end(self, data: bytes, start: int, *, begins: bool) -> int:
        """Where the part ends that begins at `start`: behind an empty line, which ends a head, and a body in chunks.

        Args:
            data: what has come.
            start: what is before is the parser's already.
            begins: the parser awaits a request.

        Raises:
            UnreadableHeadError: the request is one of RTSP or ICE.
        """
        if begins:
            whole = data.find(_EMPTY_LINE, start) + len(_EMPTY_LINE)
            if whole == len(data) >= len(_EMPTY_LINE) and data[start] > _SPACE:  # nothing but a head, as most are
                if _OTHER_LINE.match(data, start):
                    raise UnreadableHeadError(_OTHER)
                self._line, self._last = None, _EMPTY_LINE[-3:]
                return len(data)
            self._line, self._last = b"", b""
            begin = _EMPTY_LINES.match(data, start).end()  # type: ignore[union-attr] # there may be none
        else:
            begin = start
        if self._line is not None:
            end = data.find(b"\n", begin)
            self._line += data[begin : end if end >= 0 else len(data)]
            if end >= 0:
                if _OTHER_LINE.match(self._line):
                    raise UnreadableHeadError(_OTHER)
                self._line = None
        across = (self._last + data[begin : begin + 3]).find(_EMPTY_LINE)
        if across >= 0:
            end = begin - len(self._last) + across + len(_EMPTY_LINE)
        else:
            found = data.find(_EMPTY_LINE, begin)
            end = found + len(_EMPTY_LINE) if found >= 0 else len(data)
        self._last = (self._last + data[max(begin, end - 3) : end])[-3:]
        return end


def unreadable(error: httptools.HttpParserError | UnreadableHeadError) -> Refusal:
    """What is answered where this says why there is no request."""
    is_url = isinstance(error.__context__, httptools.HttpParserInvalidURLError)
    is_head = isinstance(error.__context__, UnreadableHeadError)
    reason = "Invalid URL" if is_url else str(error.__context__ if is_head else error)
    message = f"This cannot be read as a request of HTTP/1.1: {reason}. The connection is closed."
    return Refusal(RefusalKind.INVALID, message, code="invalid_http")
