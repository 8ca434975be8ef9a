"""Refusals in the words of the jobs protocol: as an HTTP answer, and as the error event of a stream.

Owns its codes, its envelopes and what may be tried again. Does not know why a request is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import msgspec
from starlette.responses import Response

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http.refusals import headers_of, status_of
from rbee.server.protocols.openapi import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Scope

CANCELLED = "cancelled"  # the code of a job's refusal after a cancel
_LONGEST_VALUE = 64  # characters of a value that an error repeats
_LARGEST_NUMBER = 2**64  # of a number that it repeats: JSON's can have thousands of digits
_RETRIABLE = frozenset(
    {
        RefusalKind.BODY_TIMED_OUT,
        RefusalKind.TIMED_OUT,
        RefusalKind.OVERLOADED,
        RefusalKind.UNAVAILABLE,
        RefusalKind.FAILED,
    }
)


class FieldError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is wrong with a request; `value` is what was sent, if that is short."""

    field: str
    constraint: str
    message: str
    value: Any = msgspec.UNSET

    @classmethod
    def of(cls, field: str, constraint: str, message: str, value: Any = msgspec.UNSET) -> Self:
        return cls(field, constraint, message, value if _is_short(value) else msgspec.UNSET)

    @classmethod
    def from_refusal(cls, refusal: Refusal, value: Any = msgspec.UNSET) -> Self:
        """Of one that names a field or, if it names none, blames the body."""
        return cls.of(refusal.param or "body", refusal.code or "valid", refusal.message, value)


class InvalidJob(Refusal):
    """All that is wrong with a request; `errors` are one at least."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        message = " ".join([error.message for error in errors])
        super().__init__(RefusalKind.INVALID, message, param=errors[0].field, code="invalid_request")
        self.errors = errors


class JobRefusal(Shape):
    """All that is wrong with a request; or, of another kind of refusal, a word, a sentence and whether to try again."""

    errors: list[FieldError] | msgspec.UnsetType = msgspec.UNSET
    code: str | msgspec.UnsetType = msgspec.UNSET
    message: str | msgspec.UnsetType = msgspec.UNSET
    retriable: bool | msgspec.UnsetType = msgspec.UNSET


def cancelled() -> Refusal:
    """How a job ends that its client cancels."""
    return Refusal(RefusalKind.CONFLICT, "The job was cancelled by a request of its client.", code=CANCELLED)


def incomplete() -> Refusal:
    """How a job ends whose deadline passes after its first token."""
    message = "The deadline of this job (X-Request-Deadline) passed before its answer was complete."
    return Refusal(RefusalKind.TIMED_OUT, message, code="REQUEST_TIMEOUT")


def answer(refusal: Refusal, scope: Scope | None = None) -> Response:  # noqa: ARG001 - a `RefusalFormat`
    """`{"errors": [...]}` for an invalid request, else `{"code", "message", "retriable"}`."""
    if refusal.kind is RefusalKind.INVALID:
        errors = refusal.errors if isinstance(refusal, InvalidJob) else [FieldError.from_refusal(refusal)]
        content: dict[str, Any] = {"errors": errors}
    else:
        code = (refusal.code or refusal.kind.name).upper()
        content = {"code": code, "message": refusal.message, "retriable": refusal.kind in _RETRIABLE}
    return Response(
        msgspec.json.encode(content), status_of(refusal), headers_of(refusal), media_type="application/json"
    )


def event(refusal: Refusal) -> dict[str, Any]:
    """The error event that ends a stream."""
    retriable = refusal.kind in _RETRIABLE
    return {"type": "error", "code": _event_code(refusal), "message": refusal.message, "retriable": retriable}


def _event_code(refusal: Refusal) -> str:
    if refusal.code == CANCELLED:
        return "CANCELLED"
    match refusal.kind:
        case RefusalKind.TIMED_OUT:
            return "TIMEOUT"
        case RefusalKind.INVALID:
            return "INVALID_REQUEST"
        case _:
            return "INFERENCE_FAILED"


def _is_short(value: Any) -> bool:
    match value:
        case bool() | float():
            return True
        case int():
            return abs(value) <= _LARGEST_NUMBER
        case str():
            return len(value) <= _LONGEST_VALUE
        case _:
            return False
