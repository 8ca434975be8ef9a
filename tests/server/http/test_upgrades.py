"""Requests that offer to upgrade their connection: they are answered as without the offer."""

import json
import socket
from typing import Any

import pytest

from rbee.server.http.protocol import MAX_HEAD_BYTES
from tests.raw_client import CHAT, COMPLETIONS, request_bytes
from tests.server.server_parts import expected

BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hi", "max_tokens": 4},
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "/tokenize": {"prompt": "hi"},
}
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
OFFERS = {
    "h2c": H2C,
    "h2c of Java": (*reversed(H2C),),
    "websocket": ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "several": ("Upgrade: h2c, websocket", "Connection: upgrade"),
}


def chunked(request):
    """The same request with its body in chunks of three bytes."""
    head, _, body = request.partition(b"\r\n\r\n")
    head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    pieces = [body[start : start + 3] for start in range(0, len(body), 3)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + framed


def answers(server, sent, step):
    """All that the server says to these bytes, sent in pieces of `step`."""
    with socket.create_connection(server.address, timeout=60) as client:
        for start in range(0, len(sent), step):
            client.sendall(sent[start : start + step])
        return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("framing", [bytes, chunked], ids=["length", "chunks"])
@pytest.mark.parametrize("step", [1, 10_000], ids=["byte by byte", "at once"])
def test_request_that_offers_an_upgrade_is_answered(synthetic_server, offer, path, framing, step):
    """With Content-Length and chunks, streamed and not; the next requests on the connection are answered too."""
    whole = framing(request_bytes(path, BODIES[path], *offer))
    streamed = framing(request_bytes(COMPLETIONS, BODIES[COMPLETIONS] | {"stream": True}, *offer))
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + "\r\n".join(offer).encode() + b"\r\n\r\n"
    closing = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    received = answers(synthetic_server, whole + streamed + last + closing, step)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 4
    text = expected("hi" if path != CHAT else "user: hi\nassistant: ", 4)
    assert (b'"tokens":[104,105]' if path == "/tokenize" else json.dumps(text).encode()) in received
    assert received.count(b"[DONE]") == 1
    assert b'{"status":"ok"}' in received
    log = synthetic_server.log.read_text()
    assert "websocket" not in log
    assert "upgrade" not in log.lower()


def test_offer_and_close(synthetic_server):
    """What else the Connection header says still holds."""
    request = request_bytes("/tokenize", BODIES["/tokenize"], "Connection: close, Upgrade", "Upgrade: h2c")
    received = answers(synthetic_server, request, 10_000)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in received


def test_large_body_behind_an_offer(synthetic_server):
    """It is a body, not an endless head."""
    body = BODIES["/tokenize"] | {"prompt": "h" * MAX_HEAD_BYTES}
    received = answers(synthetic_server, request_bytes("/tokenize", body, *H2C, "Connection: close"), 10_000)
    assert b'"count":%d' % MAX_HEAD_BYTES in received


def test_connect_is_refused(synthetic_server):
    """It asks for a tunnel, which no route is."""
    received = answers(synthetic_server, b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", 10_000)
    assert received.startswith(b"HTTP/1.1 400 ")
