"""Which ends of a sequence are errors."""

from __future__ import annotations

import pytest

from rbee.messages import FinishReason
from rbee.server.http.refusals import status_of
from rbee.server.streams.outcome import finish_refusal


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (FinishReason.ABORT, 503, "aborted"),
        (FinishReason.ERROR, 500, "engine_error"),
        (FinishReason.DEADLINE, 408, "REQUEST_TIMEOUT"),
        (FinishReason.SLOW_READER, 408, "slow_reader"),
    ],
)
def test_ends_that_are_errors(reason: FinishReason, status: int, code: str) -> None:
    """Each has a status and a code of its own."""
    refusal = finish_refusal(reason)
    assert refusal is not None
    assert (status_of(refusal), refusal.code) == (status, code)


def test_ordinary_ends_are_no_errors() -> None:
    """Those that the request itself asked for."""
    assert finish_refusal(FinishReason.STOP) is finish_refusal(FinishReason.LENGTH) is None
