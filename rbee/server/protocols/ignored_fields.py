"""The header that names the fields of a request that are accepted and not followed.

Owns its bounds. Does not know which fields those are: `rbee.server.protocols.fields` collects them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WARNING_BYTES = 900  # for the names of ignored fields: aiohttp refuses headers of 8 KiB, nginx of 4
_SANE_NAME = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)
_INDEX = re.compile(r"\[\d+\]")


def warning_header(ignored: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """The header that names the ignored fields (RFC 9111 still lists 299: a miscellaneous warning).

    Each kind is named once, as in messages[].id, and no more of them than clients take in a header.
    """
    if not ignored:
        return []
    kinds = dict.fromkeys(
        _INDEX.sub("[]", name) if _SANE_NAME.fullmatch(name) else "?" for name in dict.fromkeys(ignored)
    )
    named: list[str] = []
    room = WARNING_BYTES
    for kind in kinds:
        room -= len(kind) + len(", ")
        if room < 0:
            named.append(f"and {len(kinds) - len(named)} more")
            break
        named.append(kind)
    return [(b"warning", f'299 - "ignored: {", ".join(named)}"'.encode())]
