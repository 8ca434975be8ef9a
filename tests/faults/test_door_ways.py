"""A port, a port with TLS and a Unix socket behave the same: real servers, real sockets, real clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.door_parts import (
    LONG,
    SYNTHETIC,
    WAYS,
    leave,
    occupy,
    read_answer,
    read_to_end,
    read_until,
    send_until_closed,
    wait_until,
)
from tests.faults.faults_parts import memory_kb
from tests.faults.test_door_framing import CHUNKED, FLOODS, MIB
from tests.raw_client import CHAT, COMPLETIONS, request_bytes, text_of
from tests.server.server_parts import counters, expected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.door_parts import Door

WITH_HALF_CLOSE = tuple(way for way in WAYS if way != "tls")  # whose end is that of both sides: test_door_tls.py
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSE = "Connection: close"
MANY = 3000  # tokens whose frames are more than sockets, buffers and a ring take
LARGE = {"tokens": [1] * 131_000}  # its answer has more bytes than all buffers between the server and a client
SMALL = 16384  # bytes of a socket's buffer that is full soon
BOUND = 32 * MIB  # more than a connection takes before it is closed, with what lies in the kernel's buffers
LIMIT = 4 * MIB  # --max-body-mib
NARROW = (
    *("--model", "synthetic", "--max-num-seqs", "1", "--synthetic-step-ms", "100"),
    *("--max-num-batched-tokens", "8"),
)


@pytest.fixture(scope="module", params=WAYS)
def door(request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Door:
    """For all tests that leave the server as they found it."""
    return open_door(request.param, *SYNTHETIC, "--max-body-mib", "4")


@pytest.fixture(scope="module", params=WAYS)
def narrow_door(request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Door:
    """To a server that runs one sequence at a time, in steps of 100 ms, 8 tokens of a prompt in each."""
    return open_door(request.param, *NARROW)


@pytest.fixture(scope="module", params=WAYS)
def strict_door(request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Door:
    """To a server that answers to one name more, and needs a key."""
    return open_door(request.param, *SYNTHETIC, "--api-key", "secret", "--allowed-host", "rbee.example")


@contextlib.contextmanager
def no_traceback(door: Door) -> Iterator[None]:
    """The block leaves none in the server's log."""
    yield
    assert "Traceback" not in door.server.log.read_text()


def test_answers_are_whole_and_right(door: Door) -> None:
    """Streamed and not, through httpx, on connections that it keeps."""
    with door.client() as client:
        for number in (1, 20, 700):
            body: dict[str, Any] = {"prompt": "hello", "max_tokens": number}
            whole = client.post(COMPLETIONS, json=body)
            assert whole.json()["choices"][0]["text"] == expected("hello", number)
            streamed = client.post(COMPLETIONS, json=body | {"stream": True})
            lines = [line.removeprefix("data: ") for line in streamed.text.split("\n") if line.startswith("data: ")]
            assert lines.pop() == "[DONE]"
            assert text_of([json.loads(line) for line in lines]) == expected("hello", number)


def test_openai_client(door: Door) -> None:
    """It works unchanged."""
    messages: Any = [{"role": "user", "content": "hi"}]
    with door.openai() as client:
        assert [model.id for model in client.models.list()] == ["synthetic"]
        whole = client.chat.completions.create(model="synthetic", messages=messages, max_tokens=30)
        assert whole.choices[0].message.content == expected("user: hi\nassistant: ", 30)
        with client.chat.completions.create(model="synthetic", messages=messages, max_tokens=30, stream=True) as chunks:
            parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(parts) == expected("user: hi\nassistant: ", 30)


def test_many_streams_at_once(door: Door) -> None:
    """Each gets its own tokens."""

    def read(number: int) -> str:
        with door.connect() as sock, sock.makefile("rb") as file:
            sock.sendall(request_bytes(COMPLETIONS, {"prompt": f"{number}", "max_tokens": 200, "stream": True}))
            return text_of(read_answer(file).events)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, range(32))) == [expected(f"{number}", 200) for number in range(32)]


def test_requests_one_after_the_other_on_one_connection(door: Door) -> None:
    """Answered in order, also those that were sent together, and the connection stays open."""
    stream = request_bytes(COMPLETIONS, {"prompt": "a", "max_tokens": 9, "stream": True})
    whole = request_bytes(COMPLETIONS, {"prompt": "b", "max_tokens": 9})
    with door.connect() as sock, sock.makefile("rb") as file:
        for requests in ([stream], [whole], [HEALTH], [stream, HEALTH, whole, stream]):
            sock.sendall(b"".join(requests))
            for request in requests:
                answer = read_answer(file)
                assert answer.status == 200
                assert answer.headers["connection"] == "keep-alive"
                if request is stream:
                    assert text_of(answer.events) == expected("a", 9)
                elif request is whole:
                    assert json.loads(answer.body)["choices"][0]["text"] == expected("b", 9)


def test_stream_of_http_1_0_ends_with_its_connection(door: Door) -> None:
    """It has no framing that could tell its end."""
    request = request_bytes(COMPLETIONS, {"prompt": "old", "max_tokens": 50, "stream": True})
    with door.connect() as sock:
        sock.sendall(request.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        body = read_to_end(sock).partition(b"\r\n\r\n")[2]
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    assert text_of([json.loads(line) for line in lines]) == expected("old", 50)


@pytest.mark.parametrize("behind", [b"", HEALTH], ids=["alone", "before another request"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("kind", ["streamed", "whole"])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
def test_client_that_leaves_frees_its_ring(narrow_door: Door, stage: str, kind: str, how: str, behind: bytes) -> None:
    """None of these requests could end by itself in the time the test waits."""
    door = narrow_door
    long: dict[str, Any] = {
        "prompt": "x" * (8000 if stage == "prefill" else 1),
        "max_tokens": 190 if stage == "prefill" else 8000,
        "stream": kind == "streamed",
    }
    with no_traceback(door), contextlib.ExitStack() as stack:
        before = door.held()
        if stage == "queue":
            occupy(stack, door)
        sock = stack.enter_context(door.connect())
        sock.sendall(request_bytes(COMPLETIONS, long))
        door.until_rings(2 if stage == "queue" else 1)
        if stage == "decode" and kind == "streamed":
            read_until(sock, b'"text"')
        sock.sendall(behind)
        leave(sock, how)
        door.until_rings(1 if stage == "queue" else 0)
        stack.close()
        door.until_held(before)


@pytest.mark.parametrize("kind", ["streamed", "whole"])
def test_slow_reader_is_given_up_alone(open_door: Callable[..., Door], door: Door, kind: str) -> None:
    """A stream ends with its reason behind the tokens that were on their way; an answer is read later, and is whole."""
    way = "uds" if door.path else "tls" if door.trust else "tcp"
    options = ("--model", "synthetic", "--synthetic-step-ms", "0.2", "--ring-capacity", "128")
    slow_door = open_door(way, *options, "--slow-reader-timeout", "3")
    with slow_door.server, slow_door.connect(SMALL) as slow, slow.makefile("rb") as file, no_traceback(slow_door):
        slow.sendall(request_bytes(COMPLETIONS, LONG | {"prompt": "slow", "stream": kind == "streamed"}))
        over = threading.Event()

        def keep_reading(prompt: str) -> None:
            last = False
            while not last:
                last = over.is_set()
                with slow_door.connect() as sock, sock.makefile("rb") as other:
                    sock.sendall(request_bytes(COMPLETIONS, LONG | {"prompt": prompt, "max_tokens": 300}))
                    assert text_of(read_answer(other).events) == expected(prompt, 300)

        with ThreadPoolExecutor(2) as pool:
            neighbours = [pool.submit(keep_reading, prompt) for prompt in ("left", "right")]
            try:
                if kind == "streamed":
                    slow_door.until_cancelled(1)
                answer = read_answer(file)
            finally:
                over.set()
            for neighbour in neighbours:
                neighbour.result()
        if kind == "whole":
            assert json.loads(answer.body)["choices"][0]["text"] == expected("slow", 5000)
            return
        *chunks, error, done = answer.events
        assert 128 < len(chunks) < MANY
        assert text_of(chunks) == expected("slow", len(chunks))
        assert error["error"]["code"] == "slow_reader"
        assert done == "[DONE]"
        assert counters(slow_door.server)["cancels"] == 1


@pytest.mark.parametrize("way", WAYS)
def test_answers_that_nobody_reads_are_dropped(open_door: Callable[..., Door], way: str) -> None:
    """Their clients are still there, and the server has neither their descriptors nor rings any more."""
    requests = {
        "whole": request_bytes("/detokenize", LARGE),
        "whole, then close": request_bytes("/detokenize", LARGE, CLOSE),
        "pipelined": 2 * request_bytes("/detokenize", LARGE),
        "streamed": request_bytes(COMPLETIONS, LONG),
    }
    options = ("--model", "synthetic", "--synthetic-step-ms", "0.1", "--slow-reader-timeout", "0.3")
    door = open_door(way, *options)
    with door.server, no_traceback(door):
        before = door.held()
        for request in requests.values():
            with door.connect(4096) as first, door.connect(4096) as second:
                first.sendall(request)
                second.sendall(request)
                door.until_held(before)
        assert door.server.stop() == 0


@pytest.mark.parametrize("flood", FLOODS)
def test_framing_without_end_is_bounded(door: Door, flood: str) -> None:
    """64 MiB of it: the connection is closed after a fraction, and costs no memory."""
    first, piece = FLOODS[flood]
    head = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
    check_flood(door, head + CHUNKED + first, piece, {431})


def test_head_without_end_is_bounded(door: Door) -> None:
    """Its headers are as small or as large as they like."""
    check_flood(door, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n" * 10_000, {431})
    check_flood(door, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a" * 65_536, {431})


def test_body_without_end_is_bounded(door: Door) -> None:
    """It is refused at its largest size, and the rest thrown away up to a bound."""
    head = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + CHUNKED
    check_flood(door, head, b"10000\r\n" + b" " * 65_536 + b"\r\n", {413})


def check_flood(door: Door, first: bytes, piece: bytes, statuses: set[int]) -> None:
    """Send `first`, then `piece` without end. An answer, if it can still be read, has one of these statuses."""
    with door.client() as client:
        client.get("/health")
        memory = memory_kb(door.server)
        with door.connect() as sock:
            sock.sendall(first)
            sent = send_until_closed(sock, piece, 64 * MIB)
            received = b""
            with contextlib.suppress(OSError):
                received = read_to_end(sock)
        assert sent < BOUND
        assert not received or int(received.split()[1]) in statuses
        assert client.get("/health").status_code == 200
        assert memory_kb(door.server) - memory < 24 * 1024


@pytest.mark.parametrize("framing", ["announced", "chunked"])
def test_refusal_of_a_large_body_is_readable_behind_all_of_it(door: Door, framing: str) -> None:
    """The client sends its whole body before it reads, as most do, and finds the answer and the connection's end."""
    length = LIMIT + MIB
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    if framing == "announced":
        request = head + b"Content-Length: %d\r\n\r\n" % length + b" " * length
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % length + b" " * length + b"\r\n0\r\n\r\n"
    with no_traceback(door):
        before = door.held()
        for _ in range(5):
            with door.connect() as sock, sock.makefile("rb") as file:
                sock.sendall(request)
                answer = read_answer(file)
                assert answer.status == 413
                assert json.loads(answer.body)["error"]["code"] == "request_too_large"
                if answer.headers["connection"] == "close":
                    assert file.read() == b""
        with door.client() as client:
            refused = client.post(COMPLETIONS, content=b" " * length, headers={"Content-Type": "application/json"})
            assert refused.status_code == 413
        door.until_held(before)


@pytest.mark.parametrize("narrow_door", WITH_HALF_CLOSE, indirect=True)
@pytest.mark.parametrize("kind", ["streamed", "whole"])
@pytest.mark.parametrize("stage", ["alone", "queue"])
def test_half_close_still_gets_the_answer(narrow_door: Door, stage: str, kind: str) -> None:
    """A client that has said that it sends nothing more waits for its answer."""
    body = {"prompt": "half", "max_tokens": 5, "stream": kind == "streamed"}
    with contextlib.ExitStack() as stack:
        before = narrow_door.held()
        if stage == "queue":
            occupant = occupy(stack, narrow_door)
        sock = stack.enter_context(narrow_door.connect())
        file = stack.enter_context(sock.makefile("rb"))
        sock.sendall(request_bytes(COMPLETIONS, body))
        sock.shutdown(socket.SHUT_WR)
        if stage == "queue":
            narrow_door.until_rings(2)
            occupant.close()
        answer = read_answer(file)
        text = text_of(answer.events) if kind == "streamed" else json.loads(answer.body)["choices"][0]["text"]
        assert text == expected("half", 5)
        assert file.read() == b"", "the server should have ended its side too"
        stack.close()
        narrow_door.until_held(before)


@pytest.mark.parametrize("narrow_door", WITH_HALF_CLOSE, indirect=True)
def test_half_close_that_becomes_a_whole_one_frees_the_ring(narrow_door: Door) -> None:
    """A client that first ends its own side, and then leaves."""
    before = narrow_door.held()
    for streamed in (True, False):
        with narrow_door.connect() as sock:
            sock.sendall(request_bytes(COMPLETIONS, LONG | {"stream": streamed}))
            sock.shutdown(socket.SHUT_WR)
            narrow_door.until_rings(1)
        narrow_door.until_held(before)


def test_names_and_keys_are_asked_for(strict_door: Door) -> None:
    """The Host rule and the key rule hold however a client came in."""
    key = {"Authorization": "Bearer secret"}
    body = {"prompt": "hi", "max_tokens": 2}
    with strict_door.client() as client:
        for name in ("localhost", "rbee.example", "rbee.example:443"):
            assert client.post(COMPLETIONS, json=body, headers=key | {"Host": name}).status_code == 200
        refused = client.post(COMPLETIONS, json=body, headers=key | {"Host": "evil.example"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
        keyless = client.post(COMPLETIONS, json=body)
        assert (keyless.status_code, keyless.json()["error"]["code"]) == (401, "invalid_api_key")
        foreign = client.post(COMPLETIONS, json=body, headers=key | {"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("way", WAYS)
def test_shutdown_lets_open_answers_finish(open_door: Callable[..., Door], way: str) -> None:
    """SIGTERM: streams and answers come to their end, a new request is refused, an idle connection holds up nothing."""
    door = open_door(way, "--model", "synthetic", "--synthetic-step-ms", "10")
    with door.server, contextlib.ExitStack() as stack:
        idle, streamed, whole = (stack.enter_context(door.connect()) for _ in range(3))
        files = [stack.enter_context(sock.makefile("rb")) for sock in (idle, streamed, whole)]
        idle.sendall(HEALTH)
        assert read_answer(files[0]).status == 200
        body = {"prompt": "drain", "max_tokens": 300}
        streamed.sendall(request_bytes(COMPLETIONS, body | {"stream": True}))
        whole.sendall(request_bytes(CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 300}))
        door.until_rings(2)
        door.server.process.terminate()
        door.server.wait_for_log("stopping; open requests")
        idle.sendall(request_bytes(COMPLETIONS, body))
        assert read_answer(files[0]).status == 503
        assert text_of(read_answer(files[1]).events) == expected("drain", 300)
        content = json.loads(read_answer(files[2]).body)["choices"][0]["message"]["content"]
        assert content == expected("user: hi\nassistant: ", 300)
        assert door.server.wait() == 0
        assert "Traceback" not in door.server.log.read_text()
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            door.carrier()


@pytest.mark.parametrize("way", WAYS)
def test_connections_that_wait_give_way(open_door: Callable[..., Door], way: str) -> None:
    """Those that have begun nothing, and those between two requests: whoever opens many keeps nobody out."""
    door = open_door(way, *SYNTHETIC, "--max-connections", "4")
    with door.server, contextlib.ExitStack() as stack:
        before = door.held()
        idle = [stack.enter_context(door.connect()) for _ in range(6)]
        for sock in idle[-2:]:
            sock.sendall(HEALTH)
            read_until(sock, b'"ok"')
        with door.connect() as sock, sock.makefile("rb") as file:
            sock.sendall(request_bytes(COMPLETIONS, {"prompt": "in", "max_tokens": 2}))
            assert read_answer(file).status == 200
        stack.close()
        wait_until(lambda: door.held() == before)
