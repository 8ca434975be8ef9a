"""A strict reader of what the door answers, for its fuzzing.

Owns which answers may come back from a conversation. Does not know how it was had.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults.fuzz_requests import LEAVING

if TYPE_CHECKING:
    from tests.faults.fuzz_requests import Conversation

_FINAL = frozenset({200, 202, 204, 400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 429, 431, 503})
_REPEATED = 1024  # bytes of the input, or twice as many, that an answer may repeat


class WrongError(AssertionError):
    """What came back is not what may come back."""


class Answer(NamedTuple):
    """One final response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes | None  # None: it has none, or its end is missing


_HEAD = re.compile(
    rb"HTTP/1\.1 ([1-5][0-9][0-9]) ([\x20-\x7e]*)\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\x20-\x7e]*\r\n)*)\r\n"
)
_SIZE = re.compile(rb"([1-9a-f][0-9a-f]*|0)\r\n")


def read_answers(received: bytes, *, cut: bool, sent: bytes) -> list[Answer]:
    """The final responses in all that came; the last one may be `cut`.

    Raises:
        WrongError: they are not responses of HTTP/1.1, or others than those to `sent` may be.
    """
    answers: list[Answer] = []
    place, is_last = 0, False
    while place < len(received):
        expect(not is_last, "something came behind an answer with Connection: close")
        head = _HEAD.match(received, place)
        if head is None and cut and b"\r\n\r\n" not in received[place:]:
            break
        expect(head is not None, f"no head of a response at {place}")
        assert head is not None
        place = head.end()
        status = int(head[1])
        headers = _headers(head[3])
        if status == 100:
            expect(not headers, "an interim response has headers")
            continue
        expect(status in _FINAL, f"status {status}")
        is_last = b"close" in headers.get(b"connection", b"")
        body, place = _body(received, place, status, headers, cut=cut, sent=sent)
        answers.append(Answer(status, headers, body))
        _check_answer(answers[-1], sent)
    return answers


def expect(condition: object, message: str) -> None:
    """Raise WrongError with this message unless the condition holds."""
    if not condition:
        raise WrongError(message)


def _headers(lines: bytes) -> dict[bytes, bytes]:
    pairs = [line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1]]
    headers = {name.lower(): value for name, value in pairs}
    expect(len(headers) == len(pairs), "a header comes twice")
    return headers


def _body(
    received: bytes, place: int, status: int, headers: dict[bytes, bytes], *, cut: bool, sent: bytes
) -> tuple[bytes | None, int]:
    """The body that begins here, and where it ends."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    expect(length is None or coding is None, "two framings")
    if status == 204:
        expect(coding is None and length in (None, b"0"), "a body with 204")
        return None, place
    if b"HEAD" in sent and (place == len(received) or received.startswith(b"HTTP/1.1 ", place)):
        return None, place
    if length is not None:
        expect(length.isdigit(), "Content-Length")
        end = place + int(length)
        if end > len(received):
            expect(cut, "the end of a body is missing")
            return None, len(received)
        return received[place:end], end
    if coding is None:
        expect(b"/1.0" in sent and headers.get(b"connection") == b"close", "no framing")
        return None if cut else received[place:], len(received)
    expect(coding == b"chunked", "Transfer-Encoding")
    body = b""
    while True:
        size = _SIZE.match(received, place)
        if size is None:
            expect(cut and b"\r\n" not in received[place : place + 20], "no size of a chunk")
            return None, len(received)
        place = size.end() + int(size[1], 16) + 2
        if place > len(received):
            expect(cut, "the end of a chunk is missing")
            return None, len(received)
        expect(received[place - 2 : place] == b"\r\n", "no end of a chunk")
        if size[1] == b"0":
            return body, place
        body += received[size.end() : place - 2]


def _check_answer(answer: Answer, sent: bytes) -> None:
    headers = answer.headers
    expect(headers.get(b"x-request-id"), "no X-Request-Id")
    expect(headers.get(b"date"), "no Date")
    head = b"\n".join(headers.values())
    expect(len(head) < 4096, "long headers")
    _check_repetition(head, sent)
    if answer.status < 400 or answer.body is None:
        return
    expect(headers.get(b"content-type") == b"application/json", f"no envelope: {answer.body[:100]!r}")
    try:
        said = _said(json.loads(answer.body))
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise WrongError(f"no envelope: {answer.body[:100]!r}") from wrong
    for message, param in said:
        expect(message.endswith((".", "?")) and len(message) <= 1000, f"the message {message!r}")
        expect(param is None or len(param) <= 1000, "a long param")
        _check_repetition(message.encode(), sent)


def _said(envelope: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Each message of a refusal in one of the four envelopes, with the field that is to blame."""
    names = set(envelope)
    if names == {"error"}:
        error = envelope["error"]
        expect(error["type"] and error["code"], "OpenAI's envelope")
        return [(error["message"], error["param"])]
    if names == {"type", "error", "request_id"}:
        error = envelope["error"]
        expect(envelope["type"] == "error" and error["type"] and envelope["request_id"], "Anthropic's envelope")
        return [(error["message"], None)]
    if names == {"errors"}:
        expect(envelope["errors"] and all(error["constraint"] for error in envelope["errors"]), "the jobs' errors")
        return [(error["message"], error["field"]) for error in envelope["errors"]]
    expect(names == {"code", "message", "retriable"} and envelope["code"], "the jobs' envelope")
    return [(envelope["message"], None)]


def _check_repetition(text: bytes, sent: bytes) -> None:
    for start in range(0, len(text) - _REPEATED + 1, _REPEATED):
        expect(text[start : start + _REPEATED] not in sent, "much of the request stands in its answer")


def check(talk: Conversation, received: bytes, *, was_reset: bool) -> None:
    """Raise WrongError if this may not come back from it."""
    sent = talk.sent
    answers = read_answers(received, cut=was_reset or talk.ending in LEAVING, sent=sent)
    if talk.wanted is None:
        # A refusal may come for what is no request.
        expect(len(answers) <= len(re.findall(rb"HTTP/|RTSP/|ICE/", sent)) + 1, "more answers than requests")
    else:
        expect(not was_reset, "the connection was reset")
        statuses = [answer.status for answer in answers]
        fits = len(statuses) == len(talk.wanted) and all(map(frozenset.__contains__, talk.wanted, statuses))
        expect(fits, f"statuses {statuses}")
