"""Conversations for the fuzzing of the door, from a seed: valid requests, what is changed in them, and how they end.

Owns what a conversation is. Does not know who has it, or what its answers must be.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.faults import fuzz_outputs
from tests.faults.fuzz_routes import ROUTES
from tests.raw_client import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "a-key"
ENDINGS = ("answers", "half", "later", "close", "reset", "left")
LEAVING = frozenset({"close", "reset", "left"})


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

_DEAR = frozenset(
    {CHAT, COMPLETIONS, "/metrics", "/openapi.json", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/jobs"}
)  # takes the engine's time, or the server's
_QUICK = tuple(route for route in ROUTES if route[1] not in _DEAR)
_OUTPUTS = 0.1  # of the requests say what their output must be
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
    *("input", "instructions", "max_output_tokens", "system", "stop_sequences", "job_id", "operation", "dimensions"),
    *("encoding_format", "n_predict", "prompt_logprobs", "include_stop_str_in_output", "skip_special_tokens"),
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
    requests, wanted, says_output = [], [], []
    for _ in range(chance.choice((1, 1, 1, 1, 1, 2, 2, 4))):
        among = chance.random()
        route = chance.choice(fuzz_outputs.ROUTES if among < _OUTPUTS else ROUTES if among < 0.4 else _QUICK)
        requests.append(_valid(chance, route))
        wanted.append(frozenset({route[3]}))
        says_output.append(among < _OUTPUTS)
    if kind < 0.2:
        requests[-1].headers.append((b"Connection", b"close"))
        data = b"".join(request.to_bytes() for request in requests)
        return Conversation(_split(chance, data), chance.choice(("answers", "half")), tuple(wanted))
    place = chance.randrange(len(requests))
    changed = requests[place]
    is_changed = kind < 0.85
    for _ in range(chance.choice((1, 1, 1, 2, 3)) if is_changed else 0):
        within = says_output[place] and chance.random() < 0.7
        (_change_within if within else chance.choice(_CHANGES))(chance, changed)
    data = b"".join(request.to_bytes() for request in requests)
    if not is_changed or chance.random() < 0.25:
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
        _, target, given, _ = ROUTES[chance.randrange(len(ROUTES))]
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
        text = _text_of(content, fragment)
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


def _change_within(chance: random.Random, request: _Request) -> None:
    """What its output must be, or something deeper inside of its body."""
    try:
        content = json.loads(request.body or b"")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        _change_body(chance, request)
        return
    if chance.random() < 0.3:
        fuzz_outputs.change_field(chance, content)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        if content:
            fuzz_outputs.bend(chance, content, _MARK)
    request.body = _text_of(content, chance.choice(_FRAGMENTS))
    _frame(chance, request, chunked=chance.random() < 0.2)


def _text_of(content: dict[str, Any], fragment: bytes) -> bytes:
    """As JSON, but for the fragment where the mark stands."""
    return json.dumps(content).encode().replace(b'"' + _MARK.encode() + b'"', fragment)


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
    *(_change_body, _change_body, _change_body, _change_within, _change_to_preflight),
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
