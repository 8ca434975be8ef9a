"""Jobs on a running server: what their streams hold, in which order, and who may read them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import socket
import time
from datetime import UTC, datetime
from typing import Any

import psutil
import pytest

from tests.raw_client import COMPLETIONS, Client
from tests.server.protocols.jobs.events_parts import DONE, WHOLE, event_of, kinds, text_of
from tests.server.protocols.jobs.jobs_parts import INFERENCE, JOBS, LONG, SHORT, JobClient, refusal_of
from tests.server.server_parts import counters, expected, rings_in_use, until_full, until_rings

SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "1"]
FROM_A_HIVE = {
    **SHORT,
    "operation": "infer",
    "hive_id": "hive-1",
    "model": "synthetic",
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "device": "cpu:0",
    "worker_id": "worker-1",
    "stream": True,
}
DIRECT = {
    **SHORT,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "stop": [],
    "min_p": 0.0,
    "seed": 2**64 - 1,
}


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [FROM_A_HIVE, DIRECT, SHORT], ids=["from a hive", "direct", "least"])
@pytest.mark.parametrize("path", [JOBS, INFERENCE])
def test_events_in_their_order(client, synthetic_server, body, path):
    """Started, tokens with numbers from 0, rate and memory, the end with its cost, [DONE]; nothing else."""
    before, clock = datetime.now(UTC), time.monotonic()
    job_id = client.start(body, path)
    started, *tokens, metrics, end, done = client.read(job_id, path)
    most_ms = (time.monotonic() - clock) * 1e3
    assert re.fullmatch(r"job-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", job_id)
    assert list(started) == ["type", "job_id", "model", "started_at"]
    assert (started["type"], started["job_id"], started["model"]) == ("started", job_id, "synthetic")
    began = datetime.fromisoformat(started["started_at"]).timestamp()
    assert int(before.timestamp() * 1e3) / 1e3 <= began <= datetime.now(UTC).timestamp()
    assert tokens == [{"type": "token", "t": t, "i": i} for i, t in enumerate(expected("job", 12))]
    assert list(end) == ["type", "tokens_out", "decode_time_ms", "stop_reason"]
    assert (end["type"], end["tokens_out"], end["stop_reason"], done) == ("end", 12, "MAX_TOKENS", DONE)
    assert isinstance(end["decode_time_ms"], int)
    assert 0 <= end["decode_time_ms"] <= most_ms
    assert list(metrics) == ["type", "tokens_per_sec", "memory_bytes"]
    assert metrics["type"] == "metrics"
    assert metrics["tokens_per_sec"] >= 11 / most_ms * 1e3, "the 11 tokens behind the first, in less than all the time"
    held = psutil.Process(synthetic_server.engine.pid).memory_info()
    assert 0.5 < metrics["memory_bytes"] / (held.rss - held.shared) < 2


def test_natively_and_through_python_the_same_bytes(client, synthetic_server):
    """A stop string that does not come takes a stream through Python."""

    def stream(body: dict[str, Any]) -> tuple[bytes, int]:
        before = counters(synthetic_server)["direct_tokens"]
        _, headers, content = client.ask("GET", f"{JOBS}/{client.start(body)}/stream")
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        direct = counters(synthetic_server)["direct_tokens"] - before
        varying = rb'job-[-0-9a-f]+|"started_at":"[^"]+"|"(decode_time_ms|tokens_per_sec|memory_bytes)":[\d.]+'
        return re.sub(varying, b"", content), direct

    (natively, direct), (in_python, none) = stream(SHORT), stream(SHORT | {"stop": ["\x00"]})
    assert (direct, none) == (12, 0)
    assert natively == in_python
    assert all(line.startswith(b"data: ") for line in natively.split(b"\n") if line)


def test_stop_string(client):
    """It is named, and not shown."""
    whole = expected("job", 12)
    *_, end, _ = events = client.run(SHORT | {"stop": ["never", whole[5:8]]})
    assert text_of(events) == whole[: whole.index(whole[5:8])]
    assert (end["stop_reason"], end["stop_sequence_matched"]) == ("STOP_SEQUENCE", whole[5:8])
    assert end["tokens_out"] == whole.index(whole[5:8]) + 3


@pytest.mark.parametrize("more", [{}, {"stop": ["\x00"]}], ids=["natively", "through Python"])
def test_model_that_ends_its_answer(default_server, more):
    """The text is that of plain completions, and the end is EOS."""
    prompt = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    body = {"prompt": prompt, "max_tokens": 100, "temperature": 0.0}
    client = JobClient(default_server)
    *_, end, done = events = client.run(body | more)
    completion = json.loads(client.ask("POST", COMPLETIONS, body)[2])
    [choice], usage = completion["choices"], completion["usage"]
    assert (text_of(events), choice["finish_reason"]) == (choice["text"], "stop")
    assert (end["stop_reason"], end["tokens_out"], done) == ("EOS", usage["completion_tokens"], DONE)


def test_sampling_is_that_of_plain_completions(default_server):
    """With the same seed, and with a top_p of 0, which is the most likely token."""
    body = {"prompt": "Once upon a time", "max_tokens": 16, "seed": 7}
    client = JobClient(default_server)
    completion = json.loads(client.ask("POST", COMPLETIONS, body)[2])
    assert text_of(client.run(body)) == completion["choices"][0]["text"]
    most_likely = json.loads(client.ask("POST", COMPLETIONS, body | {"temperature": 0.0})[2])
    assert text_of(client.run(body | {"top_p": 0.0})) == most_likely["choices"][0]["text"]


async def _without_a_reader(server) -> list[Any]:
    client = JobClient(server)
    job_id = client.start(SHORT | {"max_tokens": 40})
    await until_full(server)
    return client.read(job_id)


def test_job_generates_before_its_stream_is_asked_for(start_server):
    """Until its ring is full; then nothing is lost."""
    with start_server(*SYNTHETIC, "--ring-capacity", "16") as server:
        events = asyncio.run(_without_a_reader(server))
        assert text_of(events) == expected("job", 40)
        assert kinds(events) == WHOLE


def test_many_jobs_at_once(client, synthetic_server):
    """Each gets its own tokens, in whatever order they are asked for."""
    bodies: list[dict[str, Any]] = [{"prompt": f"job {number}", "max_tokens": 20 + number} for number in range(48)]
    jobs = [(client.start(body), body) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        streams = list(pool.map(client.read, [job_id for job_id, _ in reversed(jobs)]))
    for events, body in zip(streams, reversed(bodies), strict=True):
        assert kinds(events) == WHOLE
        assert text_of(events) == expected(body["prompt"], body["max_tokens"])
    assert asyncio.run(rings_in_use(synthetic_server)) == 0


async def _slowly(server) -> bytes:
    job_id = JobClient(server).start({"prompt": "slow", "max_tokens": 2000})
    async with Client(server.address) as client:
        request = f"GET {JOBS}/{job_id}/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        reader, _ = await client.send_raw(request, receive_buffer=4096)
        await until_full(server)
        return await reader.read()


def test_slow_reader(start_server):
    """The socket, the ring and the engine fill up behind it; it gets everything all the same."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "0", "--ring-capacity", "16") as server:
        answer = asyncio.run(_slowly(server))
    content = b"".join(re.split(rb"\r\n[0-9a-f]+\r\n", answer.partition(b"\r\n\r\n")[2].partition(b"\r\n")[2]))
    lines = [line for line in content.split(b"\n") if line.startswith(b"data: ")]
    events = [event_of(line) for line in lines]
    assert text_of(events) == expected("slow", 2000)
    assert kinds(events) == WHOLE


@pytest.mark.parametrize("more", [{}, {"stop": ["\x00"]}], ids=["natively", "through Python"])
def test_http_1_0(client, synthetic_server, more):
    """No chunks; the end of the connection is the end."""
    job_id = client.start(SHORT | more)
    with socket.create_connection(synthetic_server.address, timeout=60) as sock:
        sock.sendall(f"GET {JOBS}/{job_id}/stream HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    events = [event_of(line) for line in body.splitlines() if line]
    assert text_of(events) == expected("job", 12)
    assert kinds(events) == WHOLE


# ---- one reader ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [JOBS, INFERENCE])
def test_job_is_read_once(slow_server, path):
    """While it is read and when it has ended: 409. HEAD does not take it. An unknown one: 404."""
    client = JobClient(slow_server)
    job_id = client.start({"prompt": "once", "max_tokens": 10})
    url = f"{path}/{job_id}/stream"
    assert client.ask("HEAD", url)[0] == 405
    with client.stream(job_id, path) as events:
        next(events)
        assert refusal_of(client.ask("GET", url)) == (409, "JOB_TAKEN", False)
        assert text_of(list(events)) == expected("once", 10)
    assert refusal_of(client.ask("GET", url)) == (409, "JOB_TAKEN", False)
    assert refusal_of(client.ask("GET", f"{path}/job-1/stream")) == (404, "JOB_NOT_FOUND", False)


@pytest.mark.parametrize("more", [{}, {"stop": ["\x00"]}], ids=["natively", "through Python"])
def test_reader_that_leaves_cancels_its_job(slow_server, more):
    """Its ring is free again, and nothing is left to be read."""
    client = JobClient(slow_server)
    job_id = client.start(LONG | more)
    with client.stream(job_id) as events:
        assert [next(events)["type"] for _ in range(3)] == ["started", "token", "token"]
    asyncio.run(until_rings(slow_server, 0))
    assert refusal_of(client.ask("GET", f"{JOBS}/{job_id}/stream")) == (409, "JOB_TAKEN", False)


def test_reader_that_leaves_the_queue_cancels_its_job(start_server):
    """Before the first token: a blank line to a client that has ended its side shows whether it is there."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "20", "--max-num-seqs", "1") as server:
        client = JobClient(server)
        with client.stream(client.start(LONG)) as running:
            assert [next(running)["type"] for _ in range(2)] == ["started", "token"]
            with client.stream(client.start(LONG)) as waiting:
                assert next(waiting)["type"] == "started"
                asyncio.run(until_rings(server, 2))
            asyncio.run(until_rings(server, 1))
            assert next(running)["type"] == "token"


def test_silence_is_broken_by_a_blank_line(synthetic_server):
    """As soon as a client has ended its side; it gets the whole stream behind that, and no other line."""
    client = JobClient(synthetic_server)
    with synthetic_server.stopped_engine(), socket.create_connection(synthetic_server.address, timeout=60) as sock:
        job_id = client.start(SHORT)
        sock.sendall(f"GET {JOBS}/{job_id}/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while b'"type":"started"' not in answer:
            answer += sock.recv(65536)
        sock.shutdown(socket.SHUT_WR)
        while b"\r\n1\r\n\n\r\n" not in answer:
            answer += sock.recv(65536)
        synthetic_server.engine.resume()
        answer += b"".join(iter(lambda: sock.recv(65536), b""))
    content = b"".join(re.split(rb"\r\n[0-9a-f]+\r\n", answer.partition(b"\r\n\r\n")[2].partition(b"\r\n")[2]))
    events = [event_of(line) for line in content.split(b"\n")[:-1] if line.strip()]
    assert text_of(events) == expected("job", 12)
    assert kinds(events) == WHOLE


def test_job_without_a_reader_is_forgotten(start_server):
    """After --job-ttl its ring is free, and it is unknown."""
    with start_server(*SYNTHETIC, "--job-ttl", "0.05") as server:
        client = JobClient(server)
        job_id = client.start(LONG)
        asyncio.run(until_rings(server, 0))
        server.wait_for_log(f"nothing asked for job {job_id} within 0.05 s (--job-ttl); it is cancelled")
        status, _, content = client.ask("GET", f"{JOBS}/{job_id}/stream")
        assert status == 404
        assert "--job-ttl" in json.loads(content)["message"]
