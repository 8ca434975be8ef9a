"""Reads a request's body, within bounds of size, time and kind.

Owns those bounds. Does not look inside the body.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from rbee.server.errors import Refusal, RefusalKind

if TYPE_CHECKING:
    from starlette.requests import Request

_READ_TIMEOUT = 60.0  # seconds for the whole body


async def read_json_body(request: Request, limit: int) -> bytes:
    """The body of a JSON request, at most `limit` bytes.

    Raises:
        Refusal: another media type, a larger body, or one that does not arrive within 60 s.
        ClientDisconnect: the client is gone.
    """
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(
            RefusalKind.UNSUPPORTED_MEDIA_TYPE,
            f"The request's Content-Type is {media_type!r}; send application/json.",
            code="unsupported_media_type",
        )
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_TIMEOUT):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise Refusal(
            RefusalKind.BODY_TIMED_OUT,
            f"The request body did not arrive within {_READ_TIMEOUT:.0f} s.",
            code="request_timeout",
        ) from None


def _too_large(limit: int) -> Refusal:
    return Refusal(
        RefusalKind.BODY_TOO_LARGE,
        f"The request body is larger than {limit} bytes (--max-body-mib).",
        code="request_too_large",
    )
