"""What a request's head must be beyond what the parser checks.

Owns these rules, all of RFC 9112, and what is said where one is broken: another server that stands before this one must
not read a request otherwise. Does not know routes.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import httptools

from rbee.server.errors import Refusal, RefusalKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VERSIONS = frozenset({"1.0", "1.1"})
_NAMED = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)

_NOT_HTTP = "It is one of RTSP or ICE"
_OTHER_LINE = rb"[A-Z_-]+ +[^ \r\n]+ +(?:RTSP|ICE)/"
_FIRST, _LATER = re.compile(_OTHER_LINE), re.compile(rb"[\r\n](" + _OTHER_LINE + rb")")
_MOST_LINES = 100  # in one piece: each takes the parser a call


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


def parts(begun: bytes, data: bytes, awaits_request: Callable[[], bool]) -> Iterator[bytes]:
    """The data in parts for the parser, which takes the request lines of RTSP and ICE too, and does not tell.

    It is llhttp, which reads all three. Elsewhere, as in a body, such a line is text: so it begins a part of its own,
    and is refused if the parser then awaits a request.

    Args:
        begun: what the parser has got of an unfinished line of a head.
        data: what follows.
        awaits_request: asked when the parser has got the parts before.

    Raises:
        UnreadableHeadError: it is one, or there are more such lines than any body in use has.
    """
    new = len(begun)
    text = begun + data
    end = text.rfind(b"\n")  # in most texts that of a head: their bodies have no lines
    if text.find(b"RTSP/", 0, end + 1) < 0 and text.find(b"ICE/", 0, end + 1) < 0:
        yield data
        return
    lines = {0} if _FIRST.match(text) else set()
    lines |= {line.start(1) for line in _LATER.finditer(text)}
    if len(lines) > _MOST_LINES or (lines and min(lines) < new):
        raise UnreadableHeadError(_NOT_HTTP)
    for start, end in pairwise(sorted({new, *lines, len(text)})):
        if start in lines and awaits_request():
            raise UnreadableHeadError(_NOT_HTTP)
        yield text[start:end]


def unreadable(error: httptools.HttpParserError | UnreadableHeadError) -> Refusal:
    """What is answered where this says why there is no request."""
    is_url = isinstance(error.__context__, httptools.HttpParserInvalidURLError)
    is_head = isinstance(error.__context__, UnreadableHeadError)
    reason = "Invalid URL" if is_url else str(error.__context__ if is_head else error)
    message = f"This cannot be read as a request of HTTP/1.1: {reason}. The connection is closed."
    return Refusal(RefusalKind.INVALID, message, code="invalid_http")
