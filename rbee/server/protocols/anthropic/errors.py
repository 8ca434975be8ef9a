"""Anthropic's errors: their envelope, before a stream has begun and in it.

Owns the words for the kinds of errors. Statuses are everybody's (`rbee.server.http.refusals`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from rbee.server.http.refusals import headers_of, status_of
from rbee.server.protocols.openapi import Shape

if TYPE_CHECKING:
    from starlette.types import Scope

    from rbee.server.errors import Refusal

REQUEST_ID = "request-id"  # the header that Anthropic's clients show with an error
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# Anthropic's words for programs, by field. Its tool runners ask for a thread; told so, they send whole conversations.
_CODES = {"thread": "thread_unsupported_request"}


class AnthropicErrorDetails(Shape):
    """What a program can do about it."""

    error_code: str


class AnthropicErrorFields(Shape):
    """What went wrong: Anthropic's word for its kind, and a sentence."""

    type: str
    message: str
    details: AnthropicErrorDetails | msgspec.UnsetType = msgspec.UNSET


class AnthropicError(Shape, tag_field="type", tag="error"):
    """A refusal in Anthropic's envelope."""

    error: AnthropicErrorFields
    request_id: str


def envelope(refusal: Refusal, request_id: str) -> bytes:
    """`{"type": "error", "error": {"type", "message", "details"?}, "request_id"}` as JSON."""
    status = status_of(refusal)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": refusal.message}
    if refusal.code == "unsupported_parameter" and refusal.param in _CODES:
        error["details"] = {"error_code": _CODES[refusal.param]}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def answer(refusal: Refusal, scope: Scope) -> Response:
    """The `RefusalFormat` of Anthropic's paths."""
    request_id: str = scope["state"]["request_id"]
    headers = headers_of(refusal) | {REQUEST_ID: request_id}
    return Response(envelope(refusal, request_id), status_of(refusal), headers, media_type="application/json")
