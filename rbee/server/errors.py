"""The one error that becomes an HTTP answer, and how it looks in OpenAI's envelope.

Owns status, error type and envelope. Does not know which route or which stage of a request it ends: the same object
is a JSON answer before a stream has started and an SSE event after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from rbee.errors import RbeeError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiError(RbeeError):
    """A refusal or failure that a client is told about.

    Attributes:
        status: the HTTP status, if the response has not started yet.
        param: the field of the request that is to blame, as a path such as `messages[0].role`.
        code: a word for programs; OpenAI's where OpenAI has one.
        headers: further response headers, for example Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error, which follows from the status."""
        match self.status:
            case 401 | 403:
                return "authentication_error"
            case 429:
                return "rate_limit_error"
            case status if status >= 500:
                return "server_error"
            case _:
                return "invalid_request_error"

    def envelope(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}` as JSON."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fields})


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> ApiError:
    """A 400 that blames one field of the request."""
    return ApiError(400, message, param=param, code=code)


def deadline_passed() -> ApiError:
    """The deadline of a request has passed before its first token."""
    return ApiError(
        408,
        "The deadline of this request (deadline, or X-Request-Deadline) passed before its first token.",
        code="REQUEST_TIMEOUT",
    )
