"""The line of each request in the log of a running server: one, whatever becomes of the request."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.parse
from collections import Counter

import httpx
import pytest

from tests.raw_client import COMPLETIONS, STREAMS, Client
from tests.server.server_parts import PATIENCE, until_rings

pytestmark = pytest.mark.anyio

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1", "--log-format", "json"]
KEYS = ["--api-key", "first-secret", "--api-key", "second-secret"]
AUTHORIZED = "Authorization: Bearer second-secret"
LONG = {"prompt": "long", "max_tokens": 8000, "stream": True}
ENGINE_TIMES = {"queue_ms", "prefill_ms", "ttft_ms", "itl_ms"}


def lines_of(server):
    """The finish lines so far, by request id; each id has one."""
    parsed = [json.loads(line) for line in server.log.read_text().splitlines()]
    lines = [line for line in parsed if line["logger"] == "rbee.requests"]
    assert max(Counter(line["id"] for line in lines).values(), default=1) == 1
    return {line["id"]: line for line in lines}


def summary(line):
    """What must be equal in every run."""
    names = ("method", "path", "status", "key", "code", "finish", "prompt_tokens", "completion_tokens", "cached_tokens")
    return {name: line[name] for name in names if name in line}


async def ask(address, name, path, body, *headers):
    """A request with this id, read to its end."""
    async with Client(address) as client:
        reader, _ = await client.send(path, body, f"X-Request-Id: {name}", "Connection: close", *headers)
        with contextlib.suppress(ConnectionResetError):  # behind a body that is too large
            await reader.read()


async def test_one_line_for_every_request(start_server):
    """Streamed, collected, refused for each reason, or left by its client; with the index of the key, never the key."""
    with start_server(*SYNTHETIC, *KEYS, "--max-requests", "64", "--max-body-mib", "1") as server:
        address = server.address
        done = {"path": COMPLETIONS, "method": "POST", "status": 200, "key": 1, "prompt_tokens": 3}
        await ask(address, "stream", COMPLETIONS, {"prompt": "abc", "max_tokens": 5, "stream": True}, AUTHORIZED)
        await ask(address, "answer", COMPLETIONS, {"prompt": "abc", "max_tokens": 5}, AUTHORIZED)
        await ask(address, "choices", COMPLETIONS, {"prompt": "abc", "max_tokens": 5, "n": 3}, AUTHORIZED)
        await ask(address, "field", COMPLETIONS, {"prompt": "abc", "max_tokenz": 5}, AUTHORIZED)
        await ask(address, "key", COMPLETIONS, {"prompt": "abc"}, "Authorization: Bearer third-secret")
        await ask(address, "model", COMPLETIONS, {"prompt": "abc", "model": "other"}, AUTHORIZED)
        await ask(address, "route", "/nowhere", {}, AUTHORIZED)
        await ask(address, "method", "/version", {}, AUTHORIZED)
        await ask(address, "large", COMPLETIONS, {"prompt": "a" * 2**20}, AUTHORIZED)
        async with Client(address) as client:
            held = await client.open(COMPLETIONS, LONG, "X-Request-Id: held", AUTHORIZED)
            await anext(held.events())
            await ask(address, "full", COMPLETIONS, {"prompt": "abc", "n": 64}, AUTHORIZED)
            held.abort()
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
            http.headers["Authorization"] = "Bearer first-secret"
            for probe in ("/health", "/ready", "/metrics"):
                assert (await http.get(probe)).status_code == 200
            await http.get("/version", headers={"X-Request-Id": "version"})
            await http.post(COMPLETIONS, data={"prompt": "abc"}, headers={"X-Request-Id": "form"})
            body = {"prompt": "long", "max_tokens": 8000}
            await until_rings(server, 0)  # those of the request that was held
            waiting = asyncio.ensure_future(http.post(COMPLETIONS, json=body, headers={"X-Request-Id": "left"}))
            await until_rings(server, 1)
            waiting.cancel()
        server.wait_for_log('"id":"left"')
        assert server.stop() == 0
    refused = {"path": COMPLETIONS, "method": "POST", "key": 1}
    all_lines = lines_of(server)
    assert "secret" not in server.log.read_text()
    assert all(line["duration_ms"] > 0 for line in all_lines.values())
    for name in ("stream", "answer", "choices"):
        line = all_lines[name]
        assert line.keys() >= ENGINE_TIMES
        assert line["ttft_ms"] == pytest.approx(line["queue_ms"] + line["prefill_ms"], abs=0.002)
        assert line["stream"].startswith("cmpl-")
    summaries = {name: summary(line) for name, line in all_lines.items()}
    left, held = summaries.pop("left"), summaries.pop("held")
    assert (held["status"], held["finish"]) == (200, "abort")
    assert held["completion_tokens"] >= 1
    assert (left["status"], left["finish"], left["key"]) == (499, "abort", 0)
    assert summaries == {
        "stream": done | {"finish": "length", "completion_tokens": 5, "cached_tokens": 0},
        "answer": done | {"finish": "length", "completion_tokens": 5, "cached_tokens": 0},
        "choices": done | {"finish": "length", "completion_tokens": 15, "cached_tokens": 0},
        "field": refused | {"status": 400, "code": "unknown_parameter"},
        "key": {"path": COMPLETIONS, "method": "POST", "status": 401, "code": "invalid_api_key"},
        "model": refused | {"status": 404, "code": "model_not_found"},
        "route": refused | {"path": "/nowhere", "status": 404, "code": "not_found"},
        "method": refused | {"path": "/version", "status": 405, "code": "method_not_allowed"},
        "large": refused | {"status": 413, "code": "request_too_large"},
        "form": refused | {"key": 0, "status": 415, "code": "unsupported_media_type"},
        "full": refused | {"status": 429, "code": "queue_full"},
        "version": {"path": "/version", "method": "GET", "status": 200, "key": 0},
    }


async def test_what_is_no_request_has_a_line_too(start_server):
    """Under the id of its answer; it counts as other refusals do."""
    with start_server(*SYNTHETIC) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "invalid_http"
        [name] = re.findall(r"x-request-id: (\S+)", head.decode())
        server.wait_for_log(name)
        assert summary(lines_of(server)[name]) == {"status": 400, "code": "invalid_http"}
        metrics = await asyncio.to_thread(httpx.get, server.url + "/metrics")
        [counted] = [line for line in metrics.text.splitlines() if "invalid_http" in line]
        assert 'status="400"' in counted
        assert counted.endswith(" 1.0")
        writer.close()


async def test_stream_that_is_resumed(start_server):
    """The line of the request that began it comes once the stream has ended; the other one names the stream."""
    with start_server(*SYNTHETIC) as server:
        async with Client(server.address) as client:
            body = {"prompt": "long", "max_tokens": 200, "stream": True, "stream_options": {"resumable": True}}
            with server.stopped_engine():
                begun = await client.open(COMPLETIONS, body, "X-Request-Id: begun")
                begun.abort()
            # The stream can be taken over as soon as it is there, and ends on the other connection.
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as http:
                rest = await http.get(f"{STREAMS}/{begun.headers['x-stream-id']}", headers={"X-Request-Id": "rest"})
                assert rest.text.endswith("[DONE]\n\n")
        assert server.stop() == 0
    lines = lines_of(server)
    assert summary(lines["begun"]) == {
        "method": "POST",
        "path": COMPLETIONS,
        "status": 200,
        "finish": "length",
        "prompt_tokens": 4,
        "completion_tokens": 200,
        "cached_tokens": 0,
    }
    stream = lines["begun"]["stream"]
    assert summary(lines["rest"]) == {"method": "GET", "path": f"{STREAMS}/{stream}", "status": 200}
    assert lines["rest"]["stream"] == stream == begun.headers["x-stream-id"]
    assert len(lines) == 2


async def test_stream_that_nobody_resumes(start_server):
    """Its line comes when it is given up."""
    with start_server(*SYNTHETIC, "--resume-timeout", "0.1") as server:
        async with Client(server.address) as client:
            body = LONG | {"stream_options": {"resumable": True}}
            stream = await client.open(COMPLETIONS, body, "X-Request-Id: begun")
            stream.abort()
        server.wait_for_log('"id":"begun"')
        assert server.stop() == 0
    assert lines_of(server)["begun"]["finish"] == "abort"


async def test_requests_that_die_with_the_engine(start_server):
    """Streams keep the status of their head; the code says why they ended."""
    with start_server(*SYNTHETIC, "--max-restarts", "0") as server:
        async with Client(server.address) as client:
            stream = await client.open(COMPLETIONS, LONG, "X-Request-Id: stream")
            events = stream.events()
            await anext(events)
            reader, _ = await client.send(COMPLETIONS, LONG | {"stream": False}, "X-Request-Id: answer")
            resumable = LONG | {"stream_options": {"resumable": True}}
            begun = await client.open(COMPLETIONS, resumable, "X-Request-Id: begun")
            begun.abort()
            await until_rings(server, 3)
            server.engine.kill()
            assert [event async for event in events][-1] == "[DONE]"
            assert (await reader.readline()).split()[1] == b"503"
        assert server.wait() == 1
    lines = lines_of(server)
    seen = {name: (line["status"], line["finish"], line["code"]) for name, line in lines.items()}
    assert seen == {
        "stream": (200, "error", "engine_died"),
        "answer": (503, "error", "engine_died"),
        "begun": (200, "error", "engine_died"),
    }


async def test_no_lines_if_nobody_wants_them(start_server):
    """With --no-log-requests only what goes wrong is logged."""
    with start_server(*SYNTHETIC, "--no-log-requests") as server:
        await ask(server.address, "answer", COMPLETIONS, {"prompt": "abc", "max_tokens": 5})
        assert server.stop() == 0
    assert lines_of(server) == {}


HOSTILE = '/v1/x\n2026-01-01T00:00:00.000Z server INFO rbee: forged\r\x1b[2J\u2028\u2029\x7f\x85\x9b31m\u202e"=\\'


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_nobody_writes_lines_into_the_log(log_format, start_server):
    """Line ends, terminal commands, quotes: in a path, headers, a model's name, an id. Each line is one of ours."""
    name = "m\n2026-01-01T00:00:00.000Z server INFO rbee: forged\x1b[2J\u2028"
    options = ["--model", "synthetic", "--synthetic-step-ms", "1", "--served-model-name", name]
    with start_server(*options, "--log-format", log_format, "--debug") as server:
        async with Client(server.address) as client:
            path = urllib.parse.quote(HOSTILE)
            reader, _ = await client.send_raw(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
                + "X-Request-Id: a\x9b31m\u2028\r\nConnection: close\r\n\r\n".encode()
            )
            assert b"404" in await reader.readline()
            reader, _ = await client.send_raw(b"GET / HTTP/1.1\r\nHost: \x1b[2J\r\nbad\x1bheader\x00: 1\r\n\r\n")
            await reader.read()
        await ask(server.address, "a\u2028", COMPLETIONS, {"prompt": "\x1b", "model": HOSTILE})
        assert server.stop() == 0
    data = server.log.read_bytes()
    text = data.decode()
    assert not {character for character in text if not character.isprintable()} - {"\n"}
    lines = text.splitlines()
    assert lines == text[:-1].split("\n")
    assert not any(line.startswith("2026-01-01") for line in lines)
    if log_format == "json":
        paths = [json.loads(line).get("path") for line in lines]
        assert HOSTILE in paths
    else:
        assert any(
            'path="/v1/x\\n2026' in line and '\\u2028\\u2029\\x7f\\x85\\x9b31m\\u202e\\"=\\\\' in line for line in lines
        )


def test_reader_that_has_stopped_reading():
    """A stderr that is full for good delays no answer and no end; the lines that are missing are counted."""
    command = [sys.executable, "-m", "rbee.cli", "serve", "--port", "0", *SYNTHETIC, "--debug"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line for line in process.stdout if "listening" in line).split()[-1]
        next(line for line in process.stdout if "ready" in line)
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            path = "/" + "x" * 256
            for _ in range(300):  # more than a pipe holds
                assert client.get(path).status_code == 404
            body = {"prompt": "abc", "max_tokens": 5}
            assert client.post(COMPLETIONS, json=body).status_code == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read().count("not_found") >= 100
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
