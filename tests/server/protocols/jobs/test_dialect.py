"""What the end of a job says, from what has become of its answer."""

from __future__ import annotations

import pytest

from rbee.messages import FinishReason
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.protocols.jobs.dialect import JobDialect
from rbee.server.protocols.jobs.refusals import cancelled
from rbee.server.streams.outcome import Outcome, finish_refusal
from tests.server.protocols.jobs.events_parts import DONE, event_of


def events(frames):
    """What frames say."""
    return [event_of(line) for line in frames.splitlines() if line]


TIMINGS = {"predicted_ms": 12.6, "predicted_per_second": 476.19}


def outcome(reason, stop_string=None, timings=TIMINGS):
    """Of an answer of 7 tokens, whose decoding took 12.6 ms."""
    made = Outcome(0)
    made.reason, made.stop_string, made.completion_tokens, made.timings = reason, stop_string, 7, timings
    return made


@pytest.mark.parametrize(
    ("reason", "stop_string", "stop_reason"),
    [
        (FinishReason.STOP, None, "EOS"),
        (FinishReason.LENGTH, None, "MAX_TOKENS"),
        (FinishReason.STOP, "END", "STOP_SEQUENCE"),
    ],
)
def test_ends(reason, stop_string, stop_reason):
    """Tokens, whole milliseconds, the reason, and the stop string if one ended it."""
    end = {"type": "end", "tokens_out": 7, "decode_time_ms": 13, "stop_reason": stop_reason}
    if stop_string is not None:
        end["stop_sequence_matched"] = stop_string
    assert events(JobDialect("m").finish(outcome(reason, stop_string))) == [end, DONE]


@pytest.mark.parametrize(
    ("reason", "timings", "memory", "shown"),
    [
        (FinishReason.STOP, TIMINGS, 123, True),
        (FinishReason.STOP, {}, 123, False),
        (FinishReason.STOP, None, 123, False),
        (FinishReason.STOP, TIMINGS, None, False),
        (FinishReason.DEADLINE, TIMINGS, 123, False),
    ],
    ids=["known", "one token", "no times", "no engine", "deadline"],
)
def test_metrics(*, reason, timings, memory, shown):
    """Directly before an ordinary end, if both are known."""
    *before, end, done = events(JobDialect("m", lambda: memory).finish(outcome(reason, timings=timings)))
    metrics = {"type": "metrics", "tokens_per_sec": 476.19, "memory_bytes": 123}
    assert before == [metrics] * shown
    assert (end["type"], done) == ("error" if reason == FinishReason.DEADLINE else "end", DONE)


@pytest.mark.parametrize(
    ("refusal", "code", "retriable"),
    [
        (cancelled(), "CANCELLED", False),
        (finish_refusal(FinishReason.DEADLINE), "TIMEOUT", True),
        (finish_refusal(FinishReason.SLOW_READER), "TIMEOUT", True),
        (finish_refusal(FinishReason.ERROR), "INFERENCE_FAILED", True),
        (finish_refusal(FinishReason.ABORT), "INFERENCE_FAILED", True),
        (Refusal(RefusalKind.INVALID, "No."), "INVALID_REQUEST", False),
    ],
)
def test_errors(refusal, code, retriable):
    """One event with the reason in words, and [DONE]."""
    error = {"type": "error", "code": code, "message": refusal.message, "retriable": retriable}
    assert events(JobDialect("m").error(refusal)) == [error, DONE]


def test_no_line_can_be_torn_by_a_text():
    """Line ends in a name, a text or a message stay inside of their event."""
    dialect = JobDialect("a\nb\r\u2028c")
    assert len(dialect.begin().splitlines()) == 2
    assert events(dialect.begin())[0]["model"] == "a\nb\r\u2028c"
