"""JSON responses. Owns their encoding, and does not know what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` (anything that msgspec encodes) as JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")
