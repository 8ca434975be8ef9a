"""Requests that two servers may read in two ways, and others that bend RFC 9112: each is refused, or read as it says.

A refusal closes the connection where nobody can know what follows. Behind each shape comes a valid request, which is
answered if, and only if, the connection goes on.
"""

from __future__ import annotations

import re
import socket

import pytest

from tests.raw_client import CHAT, request_bytes

HOST = b"Host: localhost\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HOST
POST = b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
BODY = b'{"prompt":"hi"}'
CHUNKS = b"f\r\n" + BODY + b"\r\n0\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
FIFTEEN = POST + b"Content-Length: 15\r\n"
LAST = b"GET /version HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


def coded(codings: bytes) -> bytes:
    """A request with a body in chunks, whose Transfer-Encoding says this."""
    return POST + b"Transfer-Encoding: " + codings + b"\r\n\r\n" + CHUNKS


def sized(size: bytes) -> bytes:
    """A request whose one chunk has this size."""
    return CHUNKED + size + CHUNKS[1:]


def line(text: bytes) -> bytes:
    """A request with this first line."""
    return text + b"\r\n" + HOST + b"\r\n"


REFUSED = {
    "length and chunks": FIFTEEN + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\n" + CHUNKS,
    "two lengths": FIFTEEN + b"Content-Length: 1\r\n\r\n" + BODY,
    "a length twice": FIFTEEN + b"Content-Length: 15\r\n\r\n" + BODY,
    "a list of lengths": POST + b"Content-Length: 15, 15\r\n\r\n" + BODY,
    "length with a sign": POST + b"Content-Length: +15\r\n\r\n" + BODY,
    "length in hex": POST + b"Content-Length: 0xf\r\n\r\n" + BODY,
    "no length": POST + b"Content-Length:\r\n\r\n" + BODY,
    "length past 64 bits": POST + b"Content-Length: 18446744073709551631\r\n\r\n" + BODY,
    "length and space before the colon": POST + b"Content-Length : 15\r\n\r\n" + BODY,
    "coding and space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "coding identity": coded(b"identity"),
    "coding gzip": coded(b"gzip"),
    "chunked not last": coded(b"chunked, gzip"),
    "gzip before chunked": coded(b"gzip, chunked"),
    "gzip and chunked in two headers": coded(b"gzip\r\nTransfer-Encoding: chunked"),
    "chunked twice": coded(b"chunked, chunked"),
    "chunked in two headers": coded(b"chunked\r\nTransfer-Encoding: chunked"),
    "coding that ends in chunked": coded(b"xchunked"),
    "coding with a parameter": coded(b"chunked;q=1"),
    "coding in quotes": coded(b'"chunked"'),
    "coding with a control character": coded(b"\x0bchunked"),
    "coding on the next line": coded(b"\r\n chunked"),
    "coding of an upgrade": coded(b"chunked, x\r\nConnection: upgrade\r\nUpgrade: h2c"),
    "folded header": GET + b"X-A: b\r\n c\r\n\r\n",
    "folded first header": b"GET /health HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "bare LF": GET.replace(b"\r\n", b"\n") + b"\n",
    "bare LF behind a header": GET + b"X-A: b\nX-B: c\r\n\r\n",
    "bare LF at the end": GET + b"\n",
    "bare CR behind a header": GET + b"X-A: b\rX-B: c\r\n\r\n",
    "two CR": GET + b"X-A: b\r\r\n\r\n",
    "NUL in a value": GET + b"X-A: b\x00c\r\n\r\n",
    "NUL in a name": GET + b"X\x00A: b\r\n\r\n",
    "space in a name": GET + b"X A: b\r\n\r\n",
    "no name": GET + b": b\r\n\r\n",
    "no colon": GET + b"X-A\r\n\r\n",
    "size with a sign": sized(b"+f"),
    "negative size": sized(b"-f"),
    "size 0x": sized(b"0xf"),
    "space before a size": sized(b" f"),
    "space behind a size": sized(b"f "),
    "no size": sized(b""),
    "size past 64 bits": sized(b"1000000000000000f"),
    "LF behind a size": CHUNKED + b"f\n" + CHUNKS[3:],
    "CR behind a size": CHUNKED + b"f\r" + CHUNKS[3:],
    "LF in an extension": sized(b"f;a\nb"),
    "LF in a quoted extension": sized(b'f;a="\n"'),
    "NUL in an extension": sized(b"f;a=\x00"),
    "chunk without an end": CHUNKED + b"f\r\n" + BODY + b"0\r\n\r\n",
    "chunk with LF as its end": CHUNKED + b"f\r\n" + BODY + b"\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"e\r\n" + BODY + b"\r\n0\r\n\r\n",
    "length as a trailer": CHUNKED + CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n",
    "coding as a trailer": CHUNKED + CHUNKS[:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "version 0.9": line(b"GET /health HTTP/0.9"),
    "version 1.2": line(b"GET /health HTTP/1.2"),
    "version 1.10": line(b"GET /health HTTP/1.10"),
    "version 2.0": line(b"GET /health HTTP/2.0"),
    "version in small letters": line(b"GET /health http/1.1"),
    "protocol RTSP": line(b"GET /health RTSP/1.0"),
    "protocol RTSP of version 1.1": line(b"OPTIONS /health RTSP/1.1"),
    "protocol RTSP, its own method": line(b"DESCRIBE /health RTSP/1.0"),
    "protocol RTSP with a body": POST.replace(b"HTTP/", b"RTSP/") + b"Content-Length: 15\r\n\r\n" + BODY,
    "protocol RTSP behind empty lines and two spaces": b"\r\n\r\n" + line(b"GET  /health  RTSP/1.0"),
    "method of RTSP": line(b"DESCRIBE /health HTTP/1.1"),
    "protocol ICE": line(b"GET /health ICE/1.0"),
    "protocol ICE, its own method": line(b"SOURCE /health ICE/1.0"),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "space behind the version": line(b"GET /health HTTP/1.1 "),
    "tabs in the first line": line(b"GET\t/health\tHTTP/1.1"),
    "space before the method": line(b" GET /health HTTP/1.1"),
    "method in small letters": line(b"get /health HTTP/1.1"),
    "fragment": line(b"GET /health#a HTTP/1.1"),
    "NUL in the target": line(b"GET /a\x00b HTTP/1.1"),
    "target without a slash": line(b"GET health HTTP/1.1"),
    "target of CONNECT": line(b"CONNECT localhost:80 HTTP/1.1"),
}
OWN_ANSWER = {  # and the connection goes on
    "no Host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (GET + HOST + b"\r\n", 400),
    "empty Host": (b"GET /health HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "Hosts in a list": (b"GET /health HTTP/1.1\r\nHost: localhost, localhost\r\n\r\n", 400),
    "Host with a user": (b"GET /health HTTP/1.1\r\nHost: a@localhost\r\n\r\n", 400),
    "target with a name": (line(b"GET http://localhost/health HTTP/1.1"), 200),
    "target with a name alone": (line(b"GET http://localhost HTTP/1.1"), 404),
    "target with a name and a query": (line(b"GET HTTP://LOCALHOST:1?/health HTTP/1.1"), 404),
    "target with another name": (line(b"GET http://evil.example/health HTTP/1.1"), 403),
    "target with another name than a bad Host": (GET.replace(b"/", b"http://localhost/", 1) + HOST + b"\r\n", 400),
    "target with a name and no Host": (b"GET http://localhost/health HTTP/1.1\r\n\r\n", 400),
    "target with a user": (line(b"GET http://a:b@localhost/health HTTP/1.1"), 400),
    "target with two slashes": (line(b"GET //localhost/health HTTP/1.1"), 404),
    "target with a name in its query": (line(b"GET /health?http://evil.example HTTP/1.1"), 200),
    "any target": (line(b"OPTIONS * HTTP/1.1"), 404),
    "method TRACE": (line(b"TRACE /health HTTP/1.1"), 405),
    "method SOURCE": (line(b"SOURCE /health HTTP/1.1"), 405),
    "other protocols in the target": (line(b"GET /health?RTSP/1.0,ICE/1.0 HTTP/1.1"), 200),
    "other protocol in a header": (GET + b"X-A: GET / RTSP/1.0\r\n\r\n", 200),
    "other protocol in a body": (GET + b"Content-Length: 17\r\n\r\n\r\nGET / RTSP/1.0\n", 200),
    "other protocol in a chunk": (GET + b"Transfer-Encoding: chunked\r\n\r\ne\r\nGET / RTSP/1.0\r\n0\r\n\r\n", 200),
    "empty lines before": (b"\r\n\r\n" + line(b"GET /health HTTP/1.1"), 200),
    "two spaces": (line(b"GET  /health HTTP/1.1"), 200),
    "length with zeros": (POST + b"Content-Length: 0015\r\n\r\n" + BODY, 200),
    "length with white space": (POST + b"Content-Length: \t15\t \r\n\r\n" + BODY, 200),
    "coding in capitals": (coded(b"Chunked"), 200),
    "coding with empty parts": (coded(b", ,chunked"), 200),
    "size with zeros": (sized(b"000000000000000000000f"), 200),
    "extension": (sized(b'f;a="b\\"c"'), 200),
    "Host as a trailer": (CHUNKED + CHUNKS[:-2] + b"Host: evil\r\n\r\n", 200),
    "body of GET": (GET + b"Content-Length: 5\r\n\r\nhello", 200),
    "expectation": (FIFTEEN + b"Expect: 200-ok\r\n\r\n" + BODY, 200),
}
ONE_ANSWER = {  # and the connection is closed
    "length of 64 bits": (POST + b"Content-Length: 18446744073709551615\r\n\r\n" + BODY, 413),
    "1.0 without Host": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "1.0 with two Hosts": (line(b"GET /health HTTP/1.0")[:-2] + HOST + b"\r\n", 400),
    "1.0 with another name": (b"GET http://evil.example/health HTTP/1.0\r\n\r\n", 403),
    "1.0 with chunks": (coded(b"chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "1.0 with an expectation": (
        FIFTEEN.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Expect: 100-continue\r\n\r\n" + BODY,
        200,
    ),
    "close": (GET + b"Connection: close\r\n\r\n", 200),
    "close and upgrade": (
        FIFTEEN + b"Connection: close\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" + BODY,
        200,
    ),
    "CONNECT": (line(b"CONNECT /health HTTP/1.1"), 405),
}


def received(server, sent, *, ends=False):
    """All that comes until the server closes; with `ends` the client has ended its side at once."""
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall(sent)
        if ends:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def statuses(answers):
    """Of all responses, interim ones too."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]


@pytest.mark.parametrize("shape", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_closes_the_connection(synthetic_server, shape):
    """After a refusal that says why."""
    answers = received(synthetic_server, shape + LAST)
    assert statuses(answers) == [400]
    assert b'"code":"invalid_http"' in answers
    assert b"callback" not in answers


@pytest.mark.parametrize(("shape", "status"), OWN_ANSWER.values(), ids=OWN_ANSWER)
def test_what_can_be_read_is_one_request(synthetic_server, shape, status):
    """What comes behind it is the next one."""
    assert statuses(received(synthetic_server, shape + LAST)) == [status, 200]


@pytest.mark.parametrize(("shape", "status"), ONE_ANSWER.values(), ids=ONE_ANSWER)
def test_last_request_of_a_connection(synthetic_server, shape, status):
    """What comes behind it is not looked at."""
    assert statuses(received(synthetic_server, shape + LAST)) == [status]


def test_client_of_http_1_0_that_ends_its_side(synthetic_server):
    """It cannot be asked whether it waits: it is answered or closed, and never with a status that is not sent."""
    shape = LAST.replace(b"close", b"keep-alive") + FIFTEEN.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n" + BODY
    for _ in range(20):
        answers = [status for status in statuses(received(synthetic_server, shape, ends=True)) if status != 100]
        assert answers in ([], [200], [200, 200])


def test_client_that_ends_its_side_gets_one_connection_header(synthetic_server):
    """Whether its connection is kept is said once, though that changes while it waits."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}
    answer = received(synthetic_server, request_bytes(CHAT, body), ends=True).lower()
    assert answer.count(b"\r\nconnection: ") == 1
    assert b"\r\nconnection: close\r\n" in answer
