"""The one error that ends a request: what went wrong, without HTTP.

Owns the kinds of refusal. Does not know statuses, headers or envelopes: those belong to the protocol that answers.
The same object is an answer before a stream has started and an event after.
"""

from __future__ import annotations

from enum import Enum, auto

from rbee.errors import RbeeError

LONGEST_MESSAGE = 1000  # characters of a message or a parameter's name: what a client sent stands in them
_KEPT_END = 200  # of these, at the end, where the remedy is
_CUT = " [...] "


class RefusalKind(Enum):
    """What kind of failure a refusal is; its status follows from this."""

    INVALID = auto()  # the request is wrong
    UNAUTHENTICATED = auto()
    FORBIDDEN = auto()  # no key would help
    NOT_FOUND = auto()
    METHOD_NOT_ALLOWED = auto()
    BODY_TIMED_OUT = auto()  # the request did not arrive in time
    TIMED_OUT = auto()  # a deadline passed, or the client read too slowly
    CONFLICT = auto()  # with another request of the same client
    GONE = auto()  # it was here once
    BODY_TOO_LARGE = auto()
    UNSUPPORTED_MEDIA_TYPE = auto()
    HEAD_TOO_LARGE = auto()
    OVERLOADED = auto()  # no room now
    UNAVAILABLE = auto()  # no engine now
    FAILED = auto()  # a defect of ours


class Refusal(RbeeError):  # noqa: N818 - the word of the architecture: it is an answer, not a mistake
    """Ends one request; `message` is a sentence for the client that names the input and the remedy.

    A long one, which repeats much of what the client sent, is cut in its middle.
    """

    def __init__(
        self,
        kind: RefusalKind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        self.message = _shortened(message)
        super().__init__(self.message)
        self.kind = kind  # decides the status
        self.param = (
            None if param is None else _shortened(param)
        )  # the field that is to blame, as a path such as `messages[0].role`
        self.code = code  # a word for programs; OpenAI's where OpenAI has one
        self.retry_after = retry_after  # seconds after which the same request may succeed; None if it never will


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_MESSAGE:
        return text
    return text[: LONGEST_MESSAGE - _KEPT_END - len(_CUT)] + _CUT + text[-_KEPT_END:]


def invalid(param: str | None, message: str, *, code: str = "invalid_value") -> Refusal:
    """A refusal that blames one field of the request."""
    return Refusal(RefusalKind.INVALID, message, param=param, code=code)


def deadline_passed() -> Refusal:
    """The refusal of a request whose deadline passed before its first token."""
    return Refusal(
        RefusalKind.TIMED_OUT,
        "The deadline of this request (deadline, or X-Request-Deadline) passed before its first token.",
        code="REQUEST_TIMEOUT",
    )
