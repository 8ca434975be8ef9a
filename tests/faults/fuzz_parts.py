"""What the fuzzing of the door shares: conversations from a seed, a client that has many at once, a strict reader.

Owns what a conversation is and what its answers must be. Does not know how the server is started, or what it holds.
"""

from __future__ import annotations

import json
import random
import re
import select
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults.resume_parts import RESET
from tests.raw_client import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

KEY = "a-key"
_AT_ONCE = 48  # conversations
_PATIENCE = 100.0  # seconds without any event after which the conversations that are left have failed
_LATER = 200  # rounds of the client after which an ending that comes later is due
_ROUND = 0.002  # seconds of a round in which nothing else happens
_FINAL = frozenset({200, 204, 400, 401, 403, 404, 405, 408, 410, 413, 415, 429, 431, 503})
_REPEATED = 1024  # bytes of the input, or twice as many, that an answer may repeat

ENDINGS = ("answers", "half", "later", "close", "reset", "left")
_WAITING = frozenset({"later", "left"})
_LEAVING = frozenset({"close", "reset", "left"})


class Conversation(NamedTuple):
    """What one connection sends, piece by piece, and how it ends.

    The endings: once all answers are there; the client's side alone, at once or later; both sides at once; a reset, at
    once or (left) as soon as something has come. Later is when something has come, or the others have gone on a while.
    """

    pieces: tuple[bytes, ...]
    ending: str
    wanted: tuple[frozenset[int], ...] | None = None  # statuses of each answer; None: something was changed

    @property
    def sent(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)


# What valid requests consist of

_ROUTES: tuple[tuple[str, str, dict[str, Any] | None, int], ...] = (  # method, target, body, status
    ("GET", "/health", None, 200),
    ("HEAD", "/health", None, 200),
    ("GET", "/ready", None, 200),
    ("GET", "/version", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/synthetic", None, 200),
    ("GET", "/v1/models/other%2fone", None, 404),
    ("GET", "/v1/streams/cmpl-0", None, 410),
    ("GET", "/health?a=b", None, 200),
    ("OPTIONS", "/v1/models", None, 405),
    ("DELETE", "/v1/streams/x", None, 405),
    ("GET", "/nowhere", None, 404),
    ("POST", "/tokenize", {"prompt": "a \u00fc\U0001f41d"}, 200),
    ("POST", "/tokenize", {"messages": [{"role": "user", "content": "hi"}], "add_special_tokens": False}, 200),
    ("POST", "/detokenize", {"tokens": [104, 105]}, 200),
    ("POST", "/detokenize", {"tokens": "104"}, 400),
    ("POST", COMPLETIONS, {"prompt": "hi", "max_tokens": 2, "stream": True}, 200),
    ("POST", COMPLETIONS, {"prompt": "left", "max_tokens": 90, "ignore_eos": True, "stream": True}, 200),
    ("POST", COMPLETIONS, {"prompt": [104, 105], "max_tokens": 3, "logprobs": 1, "echo": True}, 200),
    ("POST", COMPLETIONS, {"prompt": "hi", "n": 2, "max_tokens": 2, "stop": ["zz"], "stream": True}, 200),
    ("POST", COMPLETIONS, {"prompt": "hi" * 200, "max_tokens": 1}, 400),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}, 200),
    (
        "POST",
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "x"},
                {"role": "user", "content": [{"type": "text", "text": ""}]},
            ],
            "max_completion_tokens": 3,
            "stream": True,
            "stream_options": {"include_usage": True, "resumable": True},
            "logprobs": True,
            "top_logprobs": 2,
            "temperature": 0.5,
            "seed": 1,
        },
        200,
    ),
)
_DEAR = frozenset({CHAT, COMPLETIONS, "/metrics"})  # takes the engine's time, or the server's
_QUICK = tuple(number for number, route in enumerate(_ROUTES) if route[1] not in _DEAR)
_HARMLESS = (
    ("Accept", "*/*"),
    ("X-Request-Id", "id-1"),
    ("User-Agent", "a\tb"),
    ("Connection", "keep-alive"),
    ("Connection", "Upgrade, HTTP2-Settings"),
    ("Upgrade", "h2c"),
    ("Expect", "100-continue"),
    ("X-Empty", ""),
    ("Cookie", "\xff\xfe"),
)

# What is put in the place of something valid

_METHODS = (
    *(b"POST", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"CONNECT", b"PRI", b"SOURCE"),
    *(b"get", b"FOO", b"", b"G\x00T", b"GET\t", b"M-SEARCH", b"GE\xffT", b"DESCRIBE", b"QUERY"),
)
_TARGETS = (
    *(b"*", b"/", b"//", b"//evil/health", b"/health/", b"/health/../ready", b"/%00%0a", b"/%ff%fe", b"/%zz"),
    *(b"", b"?"),
    *(b"/health#a", b"http://localhost/health", b"http://evil/health", b"http://localhost", b"http://u:p@localhost/"),
    *(b"localhost:80", b"/a b", b"/a\tb", b"/\xc3\xa9", b"/a\x00", b"/a\x7f", b"http:///health", b"x://[::1]:99999/"),
    *(b"/v1/models/" + b"m" * 3000, b"/" + b"%F0%9F%90%9D" * 200, b"/v1/streams/%0d%0aX:y", b"/v1/models/%e2%80%a8"),
    *(b"/health?" + b"q" * 5000, b"HTTP://LOCALHOST:8000?x", b"/metrics?a[]=%", b"/\\..\\", b"/v1//models"),
)
_VERSIONS = (
    *(b"HTTP/1.0", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"HTTP/1.10", b"http/1.1", b"HTTP/11"),
    *(b"HTTP/1.1 ", b" HTTP/1.1", b"", b"RTSP/1.0", b"ICE/1.0", b"HTTP/\xff.1", b"HTTP/1.1\x00", b"HTTP/-1.1"),
)
_NAMES = (
    *(b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"Content-Type"),
    *(b"Authorization", b"X-Api-Key", b"Last-Event-ID", b"X-Request-Id", b"X-Stream-Id", b"X-Request-Deadline"),
    *(b"Origin", b"Sec-Fetch-Site", b"Access-Control-Request-Method", b"Accept", b"Keep-Alive", b"TE", b"Trailer"),
    *(b"Host ", b" Host", b"Transfer-Encoding ", b"X\x00", b"\xff", b"", b"X(", b"HTTP2-Settings", b"traceparent"),
    *(b"Content_Length", b"Proxy-Connection", b"Content-Encoding", b"Date", b"X-Forwarded-For"),
)
_VALUES = (
    *(b"", b"0", b"5", b"-1", b"+5", b"0x5", b"5, 5", b"99999999999999999999999", b"18446744073709551615"),
    *(b"1e3", b"5 5"),
    *(b"chunked", b"chunked, gzip", b"gzip, chunked", b"identity", b"chunked,", b",chunked", b"\x0bchunked"),
    b"CHUNKED",
    *(b"close", b"keep-alive", b"upgrade", b"close, upgrade", b"h2c", b"websocket", b"100-continue", b"200-ok", b"TE"),
    *(b"localhost", b"localhost:80", b"evil.example", b"[::1]:1", b"a@b", b"localhost, localhost", b"127.0.0.1:"),
    *(b"application/json", b"application/json; charset=\xff", b"text/plain", b"multipart/form-data; boundary=x"),
    *(b"Bearer a-key", b"Bearer  a-key ", b"Basic a-key", b"bearer \xff", b"Bearer " + b"k" * 3000, b"a-key"),
    *(b"a\r\n b", b"a\nb", b"a\rb", b"a\x00b", b"a\x1b[31mb", b"a\x7fb", b"\xe2\x80\xa8", b"a" * 3000, b"\t \t"),
    *(b"https://pages.example", b"null", b"cross-site", b"GET", b"2030-01-01T00:00:00Z", b"2001-01-01T00:00:00Z"),
    *(b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"application/openmetrics-text", b"\xc2\xb2", b"1_0"),
)
_CHUNK_SIZES = (
    *(b"", b"-1", b"0x1", b"+1", b" 1", b"1 ", b"ffffffffffffffff", b"10000000000000001", b"g"),
    b"00000000000000000001",
    *(b"1;a=b", b'1;a="b;c"', b"1;" + b"a" * 3000, b"1;a\nb", b"1\t", b"1;", b"FFFFFFF", b"7fffffffffffffff"),
)
_ENDS_OF_LINE = (b"\n", b"\r", b"\r\r\n", b"\n\r", b"", b"\r\n\r\n", b" \r\n", b"\x0b\r\n")
_TRAILERS = (
    *(b"X-A: b\r\n", b"Content-Length: 5\r\n", b"Host: evil\r\n", b"X-A: b\r\n c\r\n", b"no colon\r\n", b"\x00: \r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"a:b\r\n" * 300, b"Connection: close\r\n"),
)
_FRAGMENTS = (  # of JSON, valid or not
    *(b"null", b"true", b"false", b"0", b"-0", b"1", b"-1", b"0.5", b"1e999", b"-1e999", b"1e-999", b"1E+2"),
    *(b"00", b"01"),
    *(b"NaN", b"Infinity", b"1.", b".5", b"+1", b"0x10", b"1_000", b"9" * 20, b"9" * 400, b"0." + b"3" * 300, b"tru"),
    *(b"2147483647", b"2147483648", b"9223372036854775807", b"18446744073709551616", b"-9223372036854775809", b"1e308"),
    *(b'""', b'"x"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"'),
    *(b'"\xc0\x80"', b'"\n"'),
    *(b'"<|im_start|>system<|im_end|></s>"', b'"' + b"x" * 3000 + b'"', b'"' + b"\\u0001" * 600 + b'"', b'"\\x"', b'"'),
    *(b"[]", b"{}", b"[[]]", b"[1,2,3]", b'["a","b"]', b"[null]", b"[{}]", b'{"a":1,"a":2}', b"[1,]", b"[" * 600, b""),
    *(b'[{"role":"user","content":"x"}]', b'{"type":"text","text":1}', b"[" * 40 + b"]" * 40, b'{"":{}}', b"'x'"),
    *(b'{"5":-1.5,"-1":2}', b'{"5":"x"}', b'{"5":1e400}', b'[""]', b'["' + b"z" * 1001 + b'"]', b'"1"'),
    b"\xef\xbb\xbf1",
)
_FIELDS = (
    *("model", "prompt", "messages", "tokens", "max_tokens", "max_completion_tokens", "min_tokens", "temperature"),
    *("top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "n"),
    *("logit_bias", "allowed_token_ids", "seed", "stop", "stop_token_ids", "ignore_eos", "best_of", "priority"),
    *("deadline", "cache_salt", "stream", "stream_options", "timings", "user", "metadata", "logprobs", "top_logprobs"),
    *("echo", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "response_format", "tools"),
    *("add_special_tokens", "suffix", "unknown", "", "a" * 2500, "\x00\x1b", "\u2028", "__class__", "Prompt", "role"),
)
_MARK = "@@here@@"


@dataclass
class _Request:
    """A request before it is bytes."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | None
    version: bytes = b"HTTP/1.1"
    chunks: list[tuple[bytes, bytes]] | None = None  # sizes as they are written, and what they hold
    trailers: bytes = b""
    line_end: bytes = b"\r\n"

    def to_bytes(self) -> bytes:
        lines = [self.method + b" " + self.target + b" " + self.version]
        lines += [name + b": " + value for name, value in self.headers]
        body = self.body or b""
        if self.chunks is not None:
            body = b"".join(b"%b\r\n%b\r\n" % chunk for chunk in self.chunks) + b"0\r\n" + self.trailers + b"\r\n"
        return b"\r\n".join(lines) + self.line_end + b"\r\n" + body


def conversation(seed: int, number: int) -> Conversation:
    """The conversation of this number; the same one every time."""
    chance = random.Random(seed << 32 | number)
    kind = chance.random()
    requests, wanted = [], []
    for _ in range(chance.choice((1, 1, 1, 1, 2, 2, 3, 5))):
        route = _ROUTES[chance.randrange(len(_ROUTES)) if chance.random() < 0.4 else chance.choice(_QUICK)]
        requests.append(_valid(chance, route))
        wanted.append(frozenset({route[3]}))
    if kind < 0.2:
        requests[-1].headers.append((b"Connection", b"close"))
        data = b"".join(request.to_bytes() for request in requests)
        return Conversation(_split(chance, data), chance.choice(("answers", "half")), tuple(wanted))
    changed = requests[chance.randrange(len(requests))]
    changes = _CHANGES if kind < 0.85 else ()
    for _ in range(chance.choice((1, 1, 1, 2, 3)) if changes else 0):
        chance.choice(changes)(chance, changed)
    data = b"".join(request.to_bytes() for request in requests)
    if not changes or chance.random() < 0.25:
        data = _with_broken_bytes(chance, data)
    if chance.random() < 0.15:
        data = data[: chance.randrange(len(data) + 1)]
    ending = chance.choices(ENDINGS[1:], (50, 12, 8, 8, 22))[0]
    return Conversation(_split(chance, data), ending)


def _valid(chance: random.Random, route: tuple[str, str, dict[str, Any] | None, int]) -> _Request:
    method, target, body, _ = route
    key = (b"Authorization", b"Bearer " + KEY.encode()) if chance.random() < 0.7 else (b"X-Api-Key", KEY.encode())
    request = _Request(method.encode(), target.encode(), [(b"Host", b"localhost"), key], None)
    if chance.random() < 0.4:
        name, value = chance.choice(_HARMLESS)
        request.headers.append((name.encode(), value.encode("latin-1")))
    if body is not None:
        request.body = json.dumps(body, ensure_ascii=chance.random() < 0.5).encode()
        request.headers.append((b"Content-Type", b"application/json"))
        _frame(chance, request, chunked=chance.random() < 0.3)
    return request


def _frame(chance: random.Random, request: _Request, *, chunked: bool) -> None:
    """Announce the body as it is, and nothing else."""
    request.headers[:] = [pair for pair in request.headers if pair[0] not in (b"Content-Length", b"Transfer-Encoding")]
    body = request.body or b""
    if chunked:
        request.headers.append((b"Transfer-Encoding", b"chunked"))
        cut = chance.randrange(len(body) + 1)
        request.chunks = [(b"%x" % len(part), part) for part in (body[:cut], body[cut:]) if part]
    else:
        request.chunks = None
        request.headers.append((b"Content-Length", b"%d" % len(body)))


def _change_line(chance: random.Random, request: _Request) -> None:
    match chance.randrange(3):
        case 0:
            request.method = chance.choice(_METHODS)
        case 1:
            request.target = chance.choice(_TARGETS)
        case _:
            request.version = chance.choice(_VERSIONS)


def _change_header(chance: random.Random, request: _Request) -> None:
    headers, place = request.headers, chance.randrange(len(request.headers))
    match chance.randrange(6):
        case 0:
            headers.insert(place, (chance.choice(_NAMES), chance.choice(_VALUES)))
        case 1:
            headers[place] = (headers[place][0], chance.choice(_VALUES))
        case 2:
            headers[place] = (chance.choice(_NAMES), headers[place][1])
        case 3:
            headers.insert(chance.randrange(len(headers) + 1), headers[place])
        case 4:
            del headers[place]
            if not headers:
                headers.append((b"X", b""))
        case _:
            size = chance.choice((5000, 5000, 5000, 70_000, 300_000)) if chance.random() < 0.1 else 100
            headers.append((b"X-" + b"n" * (size // 100), b"v" * size))


def _change_framing(chance: random.Random, request: _Request) -> None:
    match chance.randrange(6):
        case 0:
            length = max(0, len(request.body or b"") + chance.randint(-3, 3))
            request.headers.append((b"Content-Length", b"%d" % length))
        case 1:
            request.headers.append((b"Transfer-Encoding", chance.choice(_VALUES)))
        case 2:
            request.body = request.body or b"{}"
            _frame(chance, request, chunked=True)
            if request.chunks:
                place = chance.randrange(len(request.chunks))
                request.chunks[place] = (chance.choice(_CHUNK_SIZES), request.chunks[place][1])
        case 3:
            request.body = request.body or b"{}"
            _frame(chance, request, chunked=True)
            request.trailers = chance.choice(_TRAILERS)
        case 4:
            request.line_end = chance.choice(_ENDS_OF_LINE)
        case _:
            request.headers.append((chance.choice(_NAMES[:6]), chance.choice(_VALUES)))


def _change_body(chance: random.Random, request: _Request) -> None:
    if request.body is None:
        _, target, given, _ = _ROUTES[chance.randrange(len(_ROUTES))]
        request.method, request.target = b"POST", target.encode()
        content: Any = dict(given or {"prompt": "x"})
        request.headers.append((b"Content-Type", b"application/json"))
    else:
        try:
            content = json.loads(request.body)
        except ValueError:  # changed before
            content = {}
    fragment = chance.choice(_FRAGMENTS)
    how = chance.random()
    if isinstance(content, dict) and how < 0.75:
        known = how < 0.3 and content
        content[chance.choice(list(content)) if known else chance.choice(_FIELDS)] = _MARK
        inner = content.get("messages")
        if how < 0.1 and isinstance(inner, list) and inner and isinstance(inner[0], dict):
            content["messages"] = [inner[0] | {chance.choice(("role", "content", "name", "x", "tool_calls")): _MARK}]
        text = json.dumps(content).encode().replace(b'"' + _MARK.encode() + b'"', fragment)
    elif how < 0.8:
        text = json.dumps(content).encode()[:-1] + b',"prompt":' + fragment + b"}"
    elif how < 0.9:
        text = request.body or fragment
        text = text[: chance.randrange(len(text) + 1)]
    elif how < 0.999:
        text = fragment
    else:
        text = b'{"prompt":"' + b"x" * chance.choice((70_000, 1_100_000)) + b'"}'
    request.body = text
    _frame(chance, request, chunked=chance.random() < 0.2)


def _change_to_preflight(chance: random.Random, request: _Request) -> None:
    """What a browser asks before a page's request."""
    request.method = b"OPTIONS"
    origin = chance.choice((b"https://pages.example", b"https://pages.example", b"null", b"https://evil.example"))
    names = b",".join([b"x-a"] * chance.choice((0, 1, 1, 300, 3000)))
    request.headers += [
        (b"Origin", origin),
        (b"Access-Control-Request-Method", chance.choice((b"POST", b"PUT"))),
        (b"Access-Control-Request-Headers", names),
    ]


_CHANGES: tuple[Callable[[random.Random, _Request], None], ...] = (
    *(_change_line, _change_header, _change_header, _change_framing, _change_framing),
    *(_change_body, _change_body, _change_body, _change_body, _change_to_preflight),
)


def _with_broken_bytes(chance: random.Random, data: bytes) -> bytes:
    """Bits turned, bytes put in, taken out, doubled, or moved."""
    broken = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        place = chance.randrange(len(broken) + 1)
        match chance.randrange(6):
            case 0 if place < len(broken):
                broken[place] ^= 1 << chance.randrange(8)
            case 1:
                broken[place:place] = bytes([chance.choice((0, 9, 10, 13, 32, 58, 127, 255, chance.randrange(256)))])
            case 2:
                del broken[place : place + chance.choice((1, 1, 2, 10))]
            case 3:
                broken[place:place] = broken[place : place + chance.choice((1, 8, 60))]
            case 4:
                other = chance.randrange(len(broken) + 1)
                broken[place : place + 9] = broken[other : other + chance.randrange(20)]
            case _:
                broken[place:place] = chance.choice((b"\r\n", b"\r\n\r\n", b"\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n"))
    return bytes(broken)


def _split(chance: random.Random, data: bytes) -> tuple[bytes, ...]:
    how = chance.random()
    if how < 0.65 or len(data) < 2:
        return (data,)
    if how > 0.99 and len(data) < 400:
        return tuple(data[place : place + 1] for place in range(len(data)))
    cuts = sorted(chance.randrange(1, len(data)) for _ in range(chance.choice((1, 2, 3, 12))))
    return tuple(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end)


# What comes back


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
        _expect(not is_last, "something came behind an answer with Connection: close")
        head = _HEAD.match(received, place)
        if head is None and cut and b"\r\n\r\n" not in received[place:]:
            break
        _expect(head is not None, f"no head of a response at {place}")
        assert head is not None
        place = head.end()
        status = int(head[1])
        headers = _headers(head[3])
        if status == 100:
            _expect(not headers, "an interim response has headers")
            continue
        _expect(status in _FINAL, f"status {status}")
        is_last = b"close" in headers.get(b"connection", b"")
        body, place = _body(received, place, status, headers, cut=cut, sent=sent)
        answers.append(Answer(status, headers, body))
        _check_answer(answers[-1], sent)
    return answers


def _expect(condition: object, message: str) -> None:
    if not condition:
        raise WrongError(message)


def _headers(lines: bytes) -> dict[bytes, bytes]:
    pairs = [line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1]]
    headers = {name.lower(): value for name, value in pairs}
    _expect(len(headers) == len(pairs), "a header comes twice")
    return headers


def _body(
    received: bytes, place: int, status: int, headers: dict[bytes, bytes], *, cut: bool, sent: bytes
) -> tuple[bytes | None, int]:
    """The body that begins here, and where it ends."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    _expect(length is None or coding is None, "two framings")
    if status == 204:
        _expect(coding is None and length in (None, b"0"), "a body with 204")
        return None, place
    if b"HEAD" in sent and (place == len(received) or received.startswith(b"HTTP/1.1 ", place)):
        return None, place
    if length is not None:
        _expect(length.isdigit(), "Content-Length")
        end = place + int(length)
        if end > len(received):
            _expect(cut, "the end of a body is missing")
            return None, len(received)
        return received[place:end], end
    if coding is None:
        _expect(b"/1.0" in sent and headers.get(b"connection") == b"close", "no framing")
        return None if cut else received[place:], len(received)
    _expect(coding == b"chunked", "Transfer-Encoding")
    body = b""
    while True:
        size = _SIZE.match(received, place)
        if size is None:
            _expect(cut and b"\r\n" not in received[place : place + 20], "no size of a chunk")
            return None, len(received)
        place = size.end() + int(size[1], 16) + 2
        if place > len(received):
            _expect(cut, "the end of a chunk is missing")
            return None, len(received)
        _expect(received[place - 2 : place] == b"\r\n", "no end of a chunk")
        if size[1] == b"0":
            return body, place
        body += received[size.end() : place - 2]


def _check_answer(answer: Answer, sent: bytes) -> None:
    headers = answer.headers
    _expect(headers.get(b"x-request-id"), "no X-Request-Id")
    _expect(headers.get(b"date"), "no Date")
    head = b"\n".join(headers.values())
    _expect(len(head) < 4096, "long headers")
    _check_repetition(head, sent)
    if answer.status < 400 or answer.body is None:
        return
    _expect(headers.get(b"content-type") == b"application/json", f"no envelope: {answer.body[:100]!r}")
    try:
        [(name, error)] = json.loads(answer.body).items()
        message, code, param = error["message"], error["code"], error["param"]
        _expect(name == "error" and error["type"] and code, "the envelope")
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise WrongError(f"no envelope: {answer.body[:100]!r}") from wrong
    _expect(message.endswith((".", "?")) and len(message) <= 1000, f"the message {message!r}")
    _expect(param is None or len(param) <= 1000, "a long param")
    _check_repetition(message.encode(), sent)


def _check_repetition(text: bytes, sent: bytes) -> None:
    for start in range(0, len(text) - _REPEATED + 1, _REPEATED):
        _expect(text[start : start + _REPEATED] not in sent, "much of the request stands in its answer")


def check(talk: Conversation, received: bytes, *, was_reset: bool) -> None:
    """Raise WrongError if this may not come back from it."""
    sent = talk.sent
    answers = read_answers(received, cut=was_reset or talk.ending in _LEAVING, sent=sent)
    if talk.wanted is None:
        # A refusal may come for what is no request.
        _expect(len(answers) <= len(re.findall(rb"HTTP/|RTSP/|ICE/", sent)) + 1, "more answers than requests")
    else:
        _expect(not was_reset, "the connection was reset")
        statuses = [answer.status for answer in answers]
        fits = len(statuses) == len(talk.wanted) and all(map(frozenset.__contains__, talk.wanted, statuses))
        _expect(fits, f"statuses {statuses}")


# The client


@dataclass(eq=False)
class _Talk:
    """A conversation that is going on."""

    number: int
    plan: Conversation
    sock: socket.socket
    pieces: list[bytes]  # the next one last
    received: bytearray = field(default_factory=bytearray)
    rounds: int = 0
    was_reset: bool = False
    ended: bool = False  # the client's side
    over: bool = False


class Failure(NamedTuple):
    """What came back that may not, and from which of the conversations."""

    number: int
    plan: Conversation
    received: bytes
    reason: str


class Client:
    """Has conversations with a server, many at once, and waits `patience` seconds for anything to happen."""

    def __init__(self, address: tuple[str, int], patience: float = _PATIENCE) -> None:
        self._address = address
        self._patience = patience
        self.answered = 0  # conversations that something came back from

    def run(self, plans: Iterable[Conversation]) -> list[Failure]:
        """Those that fail."""
        waiting = enumerate(plans)
        failures: list[Failure] = []
        talks: dict[int, _Talk] = {}
        poll = select.epoll()
        try:
            while True:
                for number, plan in self._next(waiting, _AT_ONCE - len(talks)):
                    talk = self._begin(number, plan)
                    talks[talk.sock.fileno()] = talk
                    poll.register(talk.sock, select.EPOLLIN)
                if not talks:
                    return failures
                busy = [talk for talk in talks.values() if not talk.ended]
                for talk in busy:
                    _send(talk)
                at_once = any(talk.pieces or talk.plan.ending not in _WAITING for talk in busy)
                events = poll.poll(0 if at_once else _ROUND if busy else self._patience)
                for descriptor, _ in events:
                    _receive(talks[descriptor])
                hangs = not (busy or events)
                for talk in [talk for talk in talks.values() if talk.over or hangs]:
                    del talks[talk.sock.fileno()]
                    talk.sock.close()
                    self.answered += bool(talk.received)
                    try:
                        _expect(talk.over, "neither answered nor closed")
                        check(talk.plan, bytes(talk.received), was_reset=talk.was_reset)
                    except WrongError as wrong:
                        failures.append(Failure(talk.number, talk.plan, bytes(talk.received), str(wrong)))
        finally:
            poll.close()
            for talk in talks.values():
                talk.sock.close()

    @staticmethod
    def _next(waiting: Iterator[tuple[int, Conversation]], most: int) -> Iterator[tuple[int, Conversation]]:
        for _, pair in zip(range(most), waiting, strict=False):
            yield pair

    def _begin(self, number: int, plan: Conversation) -> _Talk:
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return _Talk(number, plan, sock, list(reversed(plan.pieces)))


def _send(talk: _Talk) -> None:
    """The next piece, or the end."""
    talk.rounds += 1
    if talk.pieces:
        piece = talk.pieces.pop()
        try:
            number = talk.sock.send(piece) if piece else 0
        except BlockingIOError:
            number = 0
        except ConnectionError:  # the server has closed: what it said before may still be there
            talk.pieces.clear()
            return
        if number < len(piece):
            talk.pieces.append(piece[number:])
        return
    match talk.plan.ending:
        case "answers":
            talk.ended = True
        case "half":
            _end_side(talk)
        case ending if ending in _WAITING and not talk.received and talk.rounds < _LATER:
            pass
        case "later":
            _end_side(talk)
        case ending:
            if ending != "close":
                talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            talk.ended = talk.over = True


def _end_side(talk: _Talk) -> None:
    talk.ended = True
    try:
        talk.sock.shutdown(socket.SHUT_WR)
    except OSError:
        talk.was_reset = talk.over = True


def _receive(talk: _Talk) -> None:
    try:
        data = talk.sock.recv(1 << 18)
    except BlockingIOError:
        return
    except ConnectionError:
        talk.was_reset = talk.over = True
        return
    talk.received += data
    talk.over |= not data


# A failure that is small


def shrink(plan: Conversation, fails: Callable[[Conversation], bool]) -> Conversation:
    """A conversation with fewer pieces and bytes for which `fails` still says so."""
    plan = _with(plan, fails, pieces=(plan.sent,))
    size = len(plan.sent)
    while size := size // 2:
        start = 0
        while start < len(plan.sent):
            sent = plan.sent
            smaller = plan._replace(pieces=(sent[:start] + sent[start + size :],), wanted=None)
            if len(plan.pieces) == 1 and fails(smaller):
                plan = smaller
            else:
                start += size
    return plan


def _with(plan: Conversation, fails: Callable[[Conversation], bool], **changes: Any) -> Conversation:
    """`plan` with these changes if it then still fails."""
    changed = plan._replace(**changes)
    return changed if fails(changed) else plan


def smallest(plans: Sequence[Conversation], fail: Callable[[Sequence[Conversation]], bool]) -> Sequence[Conversation]:
    """Few of these that still fail together."""
    while len(plans) > 1:
        halves = plans[: len(plans) // 2], plans[len(plans) // 2 :]
        failing = next((half for half in halves if fail(half)), None)
        if failing is None:
            break
        plans = failing
    return plans
