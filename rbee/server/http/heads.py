"""What a request's head must be beyond what the parser checks.

Owns these rules, all of RFC 9112: another server that stands before this one must not read a request otherwise. Does
not know routes, or what is answered.
"""

from __future__ import annotations

import re

_VERSIONS = frozenset({"1.0", "1.1"})
_NAMED = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


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
