"""The HTTP surface of a running server: statuses, envelopes, keys, limits."""

import asyncio
import contextlib
import functools
import http.client
import socket
from collections import Counter
from typing import Any

import httpx
import pytest

from rbee import __version__
from rbee.messages import Loading
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http.app import build_app
from rbee.server.protocols.metrics import Metrics
from rbee.server.protocols.operations import OperationsApi
from rbee.transport import ServerState
from tests.raw_client import CHAT, COMPLETIONS, Client, read_stream, request_bytes
from tests.server.server_parts import counters, rings_in_use, serving_app, until_rings

pytestmark = pytest.mark.anyio

HI = {"messages": [{"role": "user", "content": "hi"}]}


def _get(server, path):
    return httpx.get(server.url + path)


@pytest.fixture(scope="module")
def strict_server(start_server):
    """A server with keys, small limits, and unknown fields ignored."""
    options = ["--api-key", "first", "--api-key", "second", "--max-body-mib", "1", "--max-requests", "64", "--lenient"]
    return start_server("--model", "synthetic", "--served-model-name", "bee", "--synthetic-step-ms", "1", *options)


def test_operations_routes(synthetic_server):
    """/health, /ready and /version say what is true."""
    get = functools.partial(_get, synthetic_server)
    assert get("/health").json() == {"status": "ok"}
    ready = get("/ready").json()
    assert (ready["ready"], ready["state"], ready["model"]) == (True, "ready", "synthetic")
    assert ready["engine"]["max_model_len"] == 8192
    assert get("/version").json() == {"version": __version__}


def test_an_empty_last_event_id_is_none(synthetic_server):
    """As the standard has it: a POST is a new request, and a GET asks for the whole stream, which is not there."""
    headers = {"Last-Event-ID": ""}
    body = {"prompt": "x", "max_tokens": 2}
    assert httpx.post(synthetic_server.url + COMPLETIONS, json=body, headers=headers).status_code == 200
    assert httpx.get(synthetic_server.url + "/v1/streams/none", headers=headers).status_code == 410


class LoadingSupervisor:
    """A Supervisor whose engine is loading its model."""

    leaving = False
    state = ServerState.LOADING
    progress = Loading(stage="weights", done=3, total=7)

    def check_ready(self):
        """It is not."""
        message = "The model is not loaded yet."
        raise Refusal(RefusalKind.UNAVAILABLE, message, code="engine_loading", retry_after=2)


async def test_ready_tells_how_far_loading_has_come():
    """As 503, with the stage and two numbers, and where more is to be read."""
    supervisor: Any = LoadingSupervisor()
    app = build_app(
        OperationsApi(supervisor, "m", lambda: Metrics(supervisor, "m", Counter()), progress_url="/p").routes()
    )
    async with serving_app(app) as url, httpx.AsyncClient(base_url=url) as client:
        ready = await client.get("/ready")
    assert (ready.status_code, ready.headers["retry-after"]) == (503, "2")
    progress = {"stage": "weights", "done": 3, "total": 7}
    answer = {"ready": False, "state": "loading", "model": "m", "progress": progress, "progress_url": "/p"}
    assert ready.json() == {**answer, "reason": "The model is not loaded yet."}


def test_models(synthetic_server):
    """The list has the one model, which can be asked for by name."""
    get = functools.partial(_get, synthetic_server)
    [card] = get("/v1/models").json()["data"]
    assert (card["id"], card["object"], card["max_model_len"]) == ("synthetic", "model", 8192)
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert card["default_sampling_params"] == neutral
    assert get("/v1/models/synthetic").json() == card


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/nothing", "", 404, "not_found"),
        ("GET", "/v1/models/", "", 404, "model_not_found"),
        ("POST", CHAT + "/", "{}", 404, "not_found"),
        ("GET", CHAT, "", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-9", "", 404, "model_not_found"),
        ("POST", CHAT, '{"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}', 404, "model_not_found"),
        ("POST", CHAT, '{"messages": ', 400, "invalid_json"),
        ("POST", CHAT, "", 400, "invalid_json"),
        ("POST", CHAT, '{"messages": [], "n": 1}', 400, "invalid_value"),
        ("POST", CHAT, '{"messagez": []}', 400, "unknown_parameter"),
        ("POST", COMPLETIONS, '{"prompt": ""}', 400, "invalid_value"),
        ("POST", COMPLETIONS, '{"prompt": [256]}', 400, "invalid_value"),
        ("POST", COMPLETIONS, '{"prompt": "hi", "max_tokens": 8191}', 400, "context_length_exceeded"),
        ("POST", COMPLETIONS, '{"prompt": "%s"}' % ("x" * 8192), 400, "context_length_exceeded"),
        ("POST", COMPLETIONS, '{"prompt": "hi", "suffix": "x"}', 400, "unsupported_parameter"),
        ("POST", "/tokenize", "{}", 400, "invalid_value"),
        ("POST", "/detokenize", '{"tokens": [256]}', 400, "invalid_value"),
    ],
)  # fmt: skip
def test_errors_have_a_status_and_the_envelope(synthetic_server, method, path, content, status, code):  # noqa: PLR0917
    """Whatever is wrong with a request, OpenAI's envelope says what, and the response has a request id."""
    headers = {"Content-Type": "application/json"}
    response = httpx.request(method, synthetic_server.url + path, content=content, headers=headers)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert response.headers["x-request-id"]


def test_405_says_what_is_allowed(synthetic_server):
    """As HTTP demands."""
    assert httpx.get(synthetic_server.url + CHAT).headers["allow"] == "POST"


def test_other_media_types_are_refused(synthetic_server):
    """What curl -d sends unless told otherwise is 415; parameters of the type do not matter."""
    content = '{"prompt": "hi", "max_tokens": 1}'
    url = synthetic_server.url + COMPLETIONS
    form = httpx.post(url, content=content, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert (form.status_code, form.json()["error"]["code"]) == (415, "unsupported_media_type")
    typed = httpx.post(url, content=content, headers={"Content-Type": "application/JSON; charset=utf-8"})
    assert typed.status_code == 200


@pytest.mark.parametrize(
    ("given", "kept"), [("my-id:1", True), ("a b", False), ("x" * 129, False), ("é".encode(), False)]
)
def test_request_id_is_the_clients_if_it_is_sane(synthetic_server, given, kept):
    """It comes back in the response; otherwise the server makes one."""
    answered = httpx.get(synthetic_server.url + "/health", headers={"X-Request-Id": given}).headers["x-request-id"]
    assert (answered == given) is kept
    assert answered


def test_tokenize_and_back(synthetic_server):
    """A prompt, or messages through the chat template, as token ids; and ids as text."""
    url = synthetic_server.url
    answer = httpx.post(url + "/tokenize", json={"prompt": "hé"}).json()
    assert answer == {"count": 3, "max_model_len": 8192, "tokens": list("hé".encode()), "token_strs": None}
    named = httpx.post(url + "/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert named == answer | {"token_strs": ["h", "Ã", "©"]}
    chat = httpx.post(url + "/tokenize", json=HI).json()["tokens"]
    assert httpx.post(url + "/detokenize", json={"tokens": chat}).json() == {"prompt": "user: hi\nassistant: "}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer", 401),
        ("Basic first", 401),
        ("Bearer first", 200),
        ("bearer second", 200),
        ("Bearer firstsecond", 401),
        ("Bearer é".encode(), 401),
    ],
)
def test_keys(strict_server, header, status):
    """Every route needs one of the keys."""
    headers = {} if header is None else {"Authorization": header}
    response = httpx.get(strict_server.url + "/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/ready", 200), ("/version", 401), ("/nothing", 401), (CHAT, 401)]
)
def test_only_probes_need_no_key(strict_server, path, status):
    """A load balancer may ask how the server is; nobody else learns anything."""
    assert httpx.get(strict_server.url + path).status_code == status


KEY = {"Authorization": "Bearer first"}


def test_large_bodies_are_refused(strict_server):
    """By their declared length before a byte is read, or when a body of unknown length has grown too large."""
    url = strict_server.url + COMPLETIONS
    headers = KEY | {"Content-Type": "application/json"}
    declared = httpx.post(url, content=b" " * (2**20 + 1), headers=headers)
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "request_too_large")
    head = request_bytes(COMPLETIONS, {}, "Authorization: Bearer first").removesuffix(b"{}")
    with (
        socket.create_connection(strict_server.address, timeout=60) as client,
        client.makefile("rb") as answer,
    ):
        client.sendall(head.replace(b"Content-Length: 2", b"Content-Length: 1048577"))
        assert answer.readline().split()[1] == b"413"
    fits = httpx.post(url, content=b'{"prompt": "hi", "max_tokens": 1}'.ljust(2**20), headers=headers)
    assert fits.status_code == 200
    with socket.create_connection(strict_server.address, timeout=60) as client, client.makefile("rb") as answer:
        client.sendall(head.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked"))
        for _ in range(17):
            client.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
        assert answer.readline().split()[1] == b"413"


def test_lenient_names_what_it_ignored(strict_server):
    """Unknown fields are named in a Warning header, streamed or not, in a way that no name can break."""
    body = HI | {"max_tokens": 1, "foo": 1, 'b"\r\n': 2}
    plain = httpx.post(strict_server.url + CHAT, json=body, headers=KEY)
    streamed = httpx.post(strict_server.url + CHAT, json=body | {"stream": True}, headers=KEY)
    assert plain.headers["warning"] == streamed.headers["warning"] == '299 - "ignored: foo, ?"'
    assert plain.json()["model"] == "bee"


async def test_no_free_ring_is_429_before_the_stream_starts(strict_server):
    """With every ring taken the next request is refused with a time to come back, and taken when there is room."""
    body = {"prompt": "hi", "max_tokens": 4000, "stream": True}
    key = "Authorization: Bearer first"
    await until_rings(strict_server, 0)
    async with Client(strict_server.address) as client:
        with strict_server.stopped_engine():
            streams = [await client.open(COMPLETIONS, body, key) for _ in range(64)]
            assert {stream.status for stream in streams} == {200}
            refused = await client.open(COMPLETIONS, body, key)
            assert refused.status == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert b"queue_full" in await refused.reader.readexactly(int(refused.headers["content-length"]))
            for stream in streams:
                stream.abort()
        while (await client.open(COMPLETIONS, body | {"max_tokens": 1}, key)).status == 429:
            pass


async def test_full_queue_is_429_before_the_stream_starts(start_server):
    """With one request running and one waiting, as many as may wait, the next one is told to come back later."""
    body = {"prompt": "hi", "max_tokens": 8000, "stream": True}
    options = ["--max-num-seqs", "1", "--max-queued-requests", "1", "--synthetic-step-ms", "20"]
    with start_server("--model", "synthetic", *options) as server:
        async with Client(server.address) as client:
            running = await client.open(COMPLETIONS, body)
            await anext(running.events())
            waiting = await client.open(COMPLETIONS, body)
            assert (running.status, waiting.status) == (200, 200)
            while not counters(server)["sequences_waiting"]:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            refused = await client.open(COMPLETIONS, body)
            assert refused.status == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            answer = await refused.reader.readexactly(int(refused.headers["content-length"]))
            assert b"--max-queued-requests" in answer
            running.abort()
            while (await client.open(COMPLETIONS, body | {"max_tokens": 1})).status == 429:
                pass


def test_pipelined_requests_are_answered_in_order(synthetic_server):
    """A second request on the same connection waits for the first stream to end, and then is streamed too."""
    first = request_bytes(COMPLETIONS, {"prompt": "a", "max_tokens": 20, "stream": True})
    second = request_bytes(COMPLETIONS, {"prompt": "b", "max_tokens": 3, "stream": True}, "Connection: close")
    with socket.create_connection(synthetic_server.address, timeout=60) as client:
        client.sendall(first + second)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    one, _, two = answer.partition(b"0\r\n\r\n")
    assert (one.count(b'"text"'), two.count(b'"text"')) == (20, 3)
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"[DONE]") == 2


@pytest.mark.parametrize("die", [False, True])
async def test_stream_behind_an_answer_that_is_not_read(start_server, die):
    """A stream that has tokens, or its end, before its head can be sent does not overtake it."""
    large = request_bytes("/detokenize", {"tokens": [1] * 131_000})  # six bytes each
    stream = request_bytes(COMPLETIONS, {"prompt": "hi", "max_tokens": 300, "stream": True}, "Connection: close")
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--ring-capacity", "128") as server:
        async with Client(server.address) as client:
            reader, _ = await client.send_raw(large + stream, receive_buffer=4096)
            await until_rings(server, 1)
            await client.read(COMPLETIONS, {"prompt": "x", "max_tokens": 400})
            assert await rings_in_use(server) == 1, "its tokens should wait in their ring"
            if die:
                server.engine.kill()
                while _get(server, "/ready").status_code == 200:
                    pass
            answer = await reader.read()
    _, _, streamed = answer.partition(b'"}')
    assert streamed.startswith(b"HTTP/1.1 200 OK\r\n")
    assert streamed.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert streamed.count(b'"text"') == (128 if die else 300)


async def test_large_prompts_are_handled_beside_others(synthetic_server):
    """A prompt that is prepared in a thread gives the same answer as any other."""
    events = await read_stream(synthetic_server.address, COMPLETIONS, {"prompt": "x" * 5000, "max_tokens": 2})
    ids = await read_stream(synthetic_server.address, COMPLETIONS, {"prompt": [ord("x")] * 5000, "max_tokens": 2})
    assert [event["choices"] for event in events[:-1]] == [event["choices"] for event in ids[:-1]]


@pytest.mark.parametrize("endless", [b"X-Endless: ", b"X-%d: y\r\n"])
@pytest.mark.parametrize("first", [True, False])
def test_endless_head_is_cut_off(synthetic_server, endless, first):
    """One header without end, or headers without end, are answered with 431 while they still come, in memory bounds."""
    with socket.create_connection(synthetic_server.address, timeout=60) as client:
        if not first:  # on a connection that has been used for a request with a body
            client.sendall(request_bytes(COMPLETIONS, {"prompt": "hi", "max_tokens": 1}))
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert (answer.status, bool(answer.read())) == (200, True)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(ConnectionError):
            for number in range(20_000):
                client.sendall(endless % number if b"%d" in endless else endless)
        received = b""
        with contextlib.suppress(ConnectionResetError):  # the rest of the head meets a closed socket
            while piece := client.recv(65536):
                received += piece
    assert received == b"" or received.startswith(b"HTTP/1.1 431 ")
    assert httpx.get(synthetic_server.url + "/health").status_code == 200


def test_large_head_within_bounds_and_large_bodies_pass(synthetic_server):
    """Headers of 60 kB are read, request after request; a body is not counted as a head."""
    with httpx.Client(base_url=synthetic_server.url) as client:
        for _ in range(3):
            assert client.get("/health", headers={"X-Large": "x" * 60_000}).status_code == 200
        body = {"prompt": "hi", "max_tokens": 1, "metadata": {"label": "x" * 300_000}}
        assert client.post(COMPLETIONS, json=body).status_code == 200
