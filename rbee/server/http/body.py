"""Reads a request's body, within bounds of size, time and kind, and has it worked on in a thread.

Owns those bounds, and that nothing is done for a client that has left. Does not look inside the body.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http.writer import HAS_LEFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

_READ_TIMEOUT = 60.0  # seconds for the whole body

_P = ParamSpec("_P")
_Result = TypeVar("_Result")


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
                    break
    except TimeoutError:
        raise Refusal(
            RefusalKind.BODY_TIMED_OUT,
            f"The request body did not arrive within {_READ_TIMEOUT:.0f} s.",
            code="request_timeout",
        ) from None
    check_client(request)
    return bytes(body)


async def in_thread(request: Request, function: Callable[_P, _Result], *values: _P.args, **named: _P.kwargs) -> _Result:
    """Call a function in a thread, when one is free. Work for a client that has left by then is not begun.

    Raises:
        ClientDisconnect: the client is gone.
    """

    def work() -> _Result:
        check_client(request)
        return function(*values, **named)

    return await asyncio.to_thread(work)


def check_client(request: Request) -> None:
    """Raise ClientDisconnect if the client has left, which may not have been read yet. Costs a system call.

    After a burst most requests in the backlog are of clients that have given up.
    """
    has_left: Callable[[], bool] | None = request.scope.get("extensions", {}).get(HAS_LEFT)
    if has_left is not None and has_left():
        raise ClientDisconnect


def _too_large(limit: int) -> Refusal:
    return Refusal(
        RefusalKind.BODY_TOO_LARGE,
        f"The request body is larger than {limit} bytes (--max-body-mib).",
        code="request_too_large",
    )
