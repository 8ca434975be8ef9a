"""How a refusal becomes an HTTP answer: status, headers, and the envelope of requests that belong to no protocol.

Owns that mapping; a protocol with another one brings its own `RefusalFormat`. Does not know why a request is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec
from starlette.responses import Response

from rbee.server.errors import Refusal, RefusalKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Scope

# The answer, as long as no response has started, to a refusal of the request with this ASGI scope.
RefusalFormat: TypeAlias = "Callable[[Refusal, Scope], Response]"

STATE = "refused"  # in a scope's state: the Refusal with which a server has this request answered, whatever it asks

_STATUS = {
    RefusalKind.INVALID: 400,
    RefusalKind.UNAUTHENTICATED: 401,
    RefusalKind.FORBIDDEN: 403,
    RefusalKind.NOT_FOUND: 404,
    RefusalKind.METHOD_NOT_ALLOWED: 405,
    RefusalKind.BODY_TIMED_OUT: 408,
    RefusalKind.TIMED_OUT: 408,
    RefusalKind.CONFLICT: 409,
    RefusalKind.GONE: 410,
    RefusalKind.BODY_TOO_LARGE: 413,
    RefusalKind.UNSUPPORTED_MEDIA_TYPE: 415,
    RefusalKind.HEAD_TOO_LARGE: 431,
    RefusalKind.OVERLOADED: 429,
    RefusalKind.UNAVAILABLE: 503,
    RefusalKind.FAILED: 500,
}
_CLOSES = frozenset({RefusalKind.BODY_TIMED_OUT, RefusalKind.BODY_TOO_LARGE})  # the rest of the body is not read


def status_of(refusal: Refusal) -> int:
    """The HTTP status of a refusal."""
    return _STATUS[refusal.kind]


def headers_of(refusal: Refusal) -> dict[str, str]:
    """The response headers that follow from a refusal."""
    headers = {}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if refusal.kind is RefusalKind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.kind in _CLOSES:
        headers["Connection"] = "close"
    return headers


def envelope(refusal: Refusal) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}` as JSON. The shape is OpenAI's."""
    fields = {
        "message": refusal.message,
        "type": _type(status_of(refusal)),
        "param": refusal.param,
        "code": refusal.code,
    }
    return msgspec.json.encode({"error": fields})


def answer(refusal: Refusal) -> Response:
    """The usual answer: status, headers and envelope."""
    return Response(envelope(refusal), status_of(refusal), headers_of(refusal), media_type="application/json")


def _type(status: int) -> str:
    """OpenAI's word for the kind of error."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case status if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"
