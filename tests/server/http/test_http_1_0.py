"""Clients of HTTP/1.0, which know no chunks: the same bytes as others, and the end of the connection as their end."""

import re
import socket

import pytest

from tests.raw_client import CHAT, COMPLETIONS, STREAMS, request_bytes

PLAIN = {"prompt": "hi", "max_tokens": 20, "stream": True}
KINDS = {
    "native": (COMPLETIONS, PLAIN),
    "chat": (CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "stream": True}),
    "stop strings": (COMPLETIONS, PLAIN | {"stop": ["never"]}),
    "ids": (COMPLETIONS, PLAIN | {"stream_options": {"resumable": True}}),
    "logprobs": (COMPLETIONS, PLAIN | {"logprobs": 1}),
    "error": (COMPLETIONS, PLAIN | {"deadline": 1e-3, "prompt": "x" * 8000}),
    "whole": (COMPLETIONS, PLAIN | {"stream": False}),
    "refused": (COMPLETIONS, PLAIN | {"max_tokens": -2}),
}


def ask(server, request):
    """Head and body of the only response on a connection that the server closes."""
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


def unchunked(body):
    """The content of a body in chunks."""
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        content += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return content


def comparable(content):
    """What does not differ from one request to the next."""
    return re.sub(rb'"created":[0-9]+', b"", re.sub(rb"cmpl-[0-9a-f]{32}", b"", content))


@pytest.mark.parametrize(("path", "body"), KINDS.values(), ids=KINDS)
def test_no_chunks_for_http_1_0(synthetic_server, path, body):
    """Streamed natively, through Python, with ids, logprobs, an error, or not streamed at all."""
    request = request_bytes(path, body)
    head, content = ask(synthetic_server, request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    newer, chunks = ask(synthetic_server, request.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"))
    assert comparable(content) == comparable(unchunked(chunks) if b"transfer-encoding" in newer else chunks)
    assert (b"content-length" in head) is (b"content-length" in newer)


def test_stream_is_resumed_without_chunks(synthetic_server):
    """EventSource behind an old proxy."""
    head, content = ask(synthetic_server, request_bytes(*KINDS["ids"]).replace(b"HTTP/1.1", b"HTTP/1.0"))
    name = head.partition(b"x-stream-id: ")[2].split()[0]
    again, rest = ask(synthetic_server, b"GET %b/%b HTTP/1.0\r\nLast-Event-ID: 7\r\n\r\n" % (STREAMS.encode(), name))
    assert b"transfer-encoding" not in again
    assert rest == content[content.index(b"id: 8\n") :]
