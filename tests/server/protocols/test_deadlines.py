"""Deadlines as they are read: which times are taken, and what they are by the engine's clock."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.server.errors import Refusal
from rbee.server.http.refusals import status_of
from rbee.server.protocols.parameters import read_deadline

NOW = datetime(2030, 1, 31, 12, 0, 0, tzinfo=UTC)
SECOND = 10**9


def deadline(field=None, *headers):
    """CLOCK_MONOTONIC's ns of a deadline, when it is 7 s by that clock and NOW by the wall's."""
    return read_deadline(field, headers, wall_ns=int(NOW.timestamp()) * SECOND, monotonic_ns=7 * SECOND)


@pytest.mark.parametrize(
    "text",
    [
        "2030-01-31T12:00:30Z",
        "2030-01-31T12:00:30.000000+00:00",
        "2030-01-31T14:00:30+02:00",
        "2030-01-31 06:30:30-05:30",
        "20300131T120030Z",
    ],
)
def test_deadline_is_a_time_of_the_engines_clock(text):
    """ISO 8601 in any zone, from the field, the header or both, becomes the same instant."""
    assert deadline(text) == deadline(None, text) == deadline(text, "2030-01-31T12:00:30Z", text) == 37 * SECOND


def test_no_deadline():
    """Without one, or with one in many years, there is none."""
    assert deadline() == deadline("2100-01-01T00:00:00Z") == deadline("9999-12-31T23:59:59.999999-23:59") == 0


@pytest.mark.parametrize("text", ["2030-01-31T12:00:00Z", "2030-01-31T11:59:59.999999Z", "0001-01-01T00:00:00+23:59"])
def test_passed_deadline_is_a_timeout(text):
    """What has passed is answered at once, with the status and the code that the protocol has for it."""
    with pytest.raises(Refusal) as caught:
        deadline(None, text)
    assert (status_of(caught.value), caught.value.code) == (408, "REQUEST_TIMEOUT")


def test_deadlines_that_differ():
    """Two times are no deadline."""
    for times in [("2030-01-31T12:00:30Z", "2030-01-31T12:00:31Z"), (None, "2030-02-01T00Z", "2030-02-02T00Z")]:
        with pytest.raises(Refusal) as caught:
            deadline(*times)
        assert (status_of(caught.value), caught.value.param) == (400, "deadline")


@pytest.mark.parametrize("text", ["soon", "2030-01-31T12:00:30", "12:00", "1900000000", "2030-02-30T00:00:00Z"])
def test_header_is_named(text):
    """A header that is no time with a zone is a 400 that names it."""
    with pytest.raises(Refusal) as caught:
        deadline(None, text)
    assert (status_of(caught.value), caught.value.param) == (400, "X-Request-Deadline")
    assert text in caught.value.message


@given(st.datetimes(timezones=st.timezones() | st.just(timezone(timedelta(hours=23, minutes=59)))), st.text())
def test_any_time_is_taken_or_refused(when, text):
    """No time, however far, and no text causes anything but a Refusal."""
    for given_text in (when.isoformat(), text):
        with contextlib.suppress(Refusal):
            assert 0 <= deadline(given_text) < 2**63
