"""The answers of a running server, and what /openapi.json says of them: each has what is said, and nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from rbee.messages import FinishReason, Loading
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.protocols.jobs.loading import progress_event
from rbee.server.protocols.openai.dialect import ChatDialect, CompletionDialect
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.protocols.operations import OperationsApi
from rbee.server.streams.generation import Generation
from rbee.transport import ServerState
from tests.raw_client import CHAT, COMPLETIONS
from tests.server.protocols.answers_parts import EVENTS, Described
from tests.server.protocols.dialects_parts import (
    HI,
    HI_PROMPT,
    MESSAGES,
    RESPONSES,
    collected,
    make_generation,
    make_messages_dialect,
    make_responses_dialect,
    streamed,
)
from tests.server.server_parts import PATIENCE, expected
from tests.server.streams.tagged_output import ANSWER, PLAN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

JOBS, INFERENCE = "/v1/jobs", "/v1/inference"
STOP = expected(HI_PROMPT, 3)[2]
VERSION = {"anthropic-version": "2023-06-01"}
ALL = {"max_tokens": 3, "return_token_ids": True, "timings": True}
JSON_FORMAT = {"type": "json_schema", "schema": {"type": "object"}, "name": "x", "description": "It.", "strict": True}
WHOLE: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HI, **ALL, "logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1}),
    (CHAT, {"messages": HI, "max_tokens": 3, "stop": STOP}),
    (COMPLETIONS, {"prompt": ["a", "b"], **ALL, "logprobs": 2, "prompt_logprobs": 1, "echo": True}),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 0, "echo": True}),
    ("/v1/embeddings", {"input": ["a", "b"]}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/tokenize", {"messages": HI}),
    ("/detokenize", {"tokens": [104]}),
    ("/apply-template", {"messages": HI}),
    (MESSAGES, {"messages": HI, "max_tokens": 3}),
    (MESSAGES, {"messages": HI, "max_tokens": 3, "stop_sequences": [STOP]}),
    (f"{MESSAGES}/count_tokens", {"messages": HI}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 3, "instructions": "x", "metadata": {"a": "b"}, "user": "u"}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 3, "top_logprobs": 2}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 3, "text": {"format": {"type": "json_object"}}}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 3, "text": {"format": JSON_FORMAT}}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 30, "stop": [expected("user: hi\nassistant: ", 3)[2]]}),
]
STREAMED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HI, **ALL, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_timing": True}}),
    (CHAT, {"messages": HI, "max_tokens": 3, "stream_options": {"include_usage": True}}),
    (CHAT, {"messages": HI, "max_tokens": 3, "n": 2, "stop": STOP}),
    (COMPLETIONS, {"prompt": ["a", "b"], **ALL, "logprobs": 2, "echo": True}),
    (
        COMPLETIONS,
        {
            "prompt": "a",
            "max_tokens": 3,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True, "include_timing": True},
        },
    ),
    (MESSAGES, {"messages": HI, "max_tokens": 3}),
    (MESSAGES, {"messages": HI, "max_tokens": 3, "stop_sequences": [STOP]}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 3}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 3, "top_logprobs": 2}),
    (RESPONSES, {"input": "hi", "max_output_tokens": 30, "stop": [STOP]}),
]
ASKED: list[tuple[str, str, dict[str, str]]] = [
    ("/health", "/health", {}),
    ("/ready", "/ready", {}),
    ("/version", "/version", {}),
    ("/v1/models", "/v1/models", {}),
    ("/v1/models", "/v1/models", VERSION),
    ("/v1/models/{name}", "/v1/models/synthetic", {}),
    ("/v1/models/{name}", "/v1/models/synthetic", VERSION),
]
REFUSED: list[tuple[str, dict[str, Any], int]] = [
    (CHAT, {}, 400),
    (CHAT, {"messages": HI, "model": "other"}, 404),
    (MESSAGES, {}, 400),
    (MESSAGES, {"messages": HI, "max_tokens": 1, "model": "other"}, 404),
    (MESSAGES, {"messages": HI, "max_tokens": 1, "thread": {"type": "create"}}, 400),
    (RESPONSES, {}, 400),
    (JOBS, {"top_p": 3}, 400),
    (JOBS, {"prompt": "x", "model": "other"}, 404),
]
BROKEN = Refusal(RefusalKind.FAILED, "It broke.", code="engine_error")


@pytest.fixture(scope="module")
def http(synthetic_server: Server) -> Iterator[httpx.Client]:
    """Of the server."""
    with httpx.Client(base_url=synthetic_server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def described(http: httpx.Client) -> Described:
    """What the server says of itself."""
    return Described(http.get("/openapi.json").json())


def events_of(stream: bytes) -> list[Any]:
    """What a stream's events hold, but for the end that is no JSON."""
    lines = [line.removeprefix(b"data: ") for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def check_whole(http: httpx.Client, described: Described) -> None:
    """Every answer that is JSON."""
    for path, body in WHOLE:
        answer = http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        described.check(described.answer("POST", path), answer.json())
    for route, path, headers in ASKED:
        described.check(described.answer("GET", route), http.get(path, headers=headers).json())
    for path, body, status in REFUSED:
        answer = http.post(path, json=body)
        assert answer.status_code == status
        described.check(described.answer("POST", path, status), answer.json())


def check_streams(http: httpx.Client, described: Described) -> None:
    """Every event, and the errors that end a stream."""
    for path, body in STREAMED:
        answer = http.post(path, json=body | {"stream": True})
        assert answer.headers["content-type"] == f"{EVENTS}; charset=utf-8", answer.text
        for event in events_of(answer.content):
            described.check(described.answer("POST", path, 200, EVENTS), event)
    asked = Generation(received_ns=0, prompt=[1], sampling=SamplingParams(max_tokens=9), stops=[])
    chat, completion = (
        dialect("m", asked, StreamOptions(), lambda _: b"") for dialect in (ChatDialect, CompletionDialect)
    )
    for path, dialect in [
        (CHAT, chat),
        (COMPLETIONS, completion),
        (MESSAGES, make_messages_dialect()),
        (RESPONSES, make_responses_dialect()),
    ]:
        [event] = events_of(dialect.error(BROKEN, 0))
        described.check(described.answer("POST", path, 200, EVENTS), event)


async def check_parsed(described: Described) -> None:
    """Answers with reasoning and calls, whole and streamed, as the dialects write them."""
    usage = StreamOptions(include_usage=True)
    made: list[tuple[str, Callable[[], Any]]] = [
        (CHAT, lambda: ChatDialect("m", make_generation(output=PLAN), usage, lambda _: b"")),
        (MESSAGES, lambda: make_messages_dialect(plan=PLAN)),
        (RESPONSES, lambda: make_responses_dialect(plan=PLAN)),
    ]
    for path, make in made:
        described.check(described.answer("POST", path), collected(make(), ANSWER, FinishReason.STOP))
        for event in events_of(streamed(make(), ANSWER, FinishReason.STOP).written()):
            described.check(described.answer("POST", path, 200, EVENTS), event)


def check_jobs(http: httpx.Client, described: Described) -> None:
    """Starts, ends, cancels, and the progress of loading."""
    job = {"prompt": "job", "max_tokens": 9}
    for body in (job, job | {"stop": [expected("job", 3)[2]]}, job | {"max_tokens": 2048}):
        started = http.post(JOBS, json=body).json()
        described.check(described.answer("POST", JOBS), started)
        job_id = started["job_id"]
        if body["max_tokens"] == 2048:
            described.check(described.answer("DELETE", f"{JOBS}/{{id}}"), http.delete(f"{JOBS}/{job_id}").json())
            cancelled = http.post("/v1/cancel", json={"job_id": job_id}).json()
            described.check(described.answer("POST", "/v1/cancel", 202), cancelled)
        for event in events_of(http.get(started["sse_url"]).content):
            described.check(described.answer("GET", f"{JOBS}/{{id}}/stream", 200, EVENTS), event)
    taken = http.get(started["sse_url"])
    described.check(described.answer("GET", f"{INFERENCE}/{{id}}/stream", taken.status_code), taken.json())
    progress = "/v1/loading/progress"
    for event in events_of(http.get(progress).content):
        described.check(described.answer("GET", progress, 200, EVENTS), event)


class LoadingSupervisor:
    """A Supervisor whose engine is not ready."""

    leaving = False
    state = ServerState.LOADING
    progress = Loading(stage="weights", done=3, total=7, layers_loaded=1, layers_total=2, memory_bytes=1)

    def check_ready(self) -> None:
        """It is not."""
        raise Refusal(RefusalKind.UNAVAILABLE, "Not yet.")


def check_loading(described: Described) -> None:
    """The answers of a server whose engine is not ready."""
    supervisor: Any = LoadingSupervisor()
    operations = OperationsApi(supervisor, "m", pytest.fail, progress_url="/p")
    ready = asyncio.run(operations.ready(None))  # type: ignore[arg-type]
    described.check(described.answer("GET", "/ready", ready.status_code), json.loads(bytes(ready.body)))
    described.check(described.answer("GET", "/v1/loading/progress", 200, EVENTS), progress_event(supervisor))


def test_answers_have_what_is_said_of_them(http: httpx.Client, described: Described) -> None:
    """No answer and no event has another member, and every member that is described is in one of them."""
    check_whole(http, described)
    check_streams(http, described)
    asyncio.run(check_parsed(described))
    check_jobs(http, described)
    check_loading(described)
    assert described.members() <= described.seen
