"""Parameters in a running server: that each reaches the engine as what it means, and what some of them do."""

import asyncio
import contextlib
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest

from rbee.messages import pack_token_ids
from rbee.models import synthetic
from rbee.sampling_params import SamplingParams
from tests.fakes import RecordingEngine
from tests.raw_client import CHAT, COMPLETIONS, Client, text_of
from tests.server.protocols.parameters_parts import (
    BOTH,
    FORMS,
    HI,
    MODEL,
    OF_THE_SERVER,
    PARAMETERS,
    PROMPT,
    TOMORROW,
    ready,
)
from tests.server.server_parts import rings_in_use, serving

pytestmark = pytest.mark.anyio

EVERYTHING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "typical_p": 0.8,
    "frequency_penalty": -0.5,
    "presence_penalty": 1.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"65": -100, "66": 2.5},
    "allowed_token_ids": [70, 66, 65, 66],
    "seed": 11,
    "stop_token_ids": [9],
    "ignore_eos": True,
    "max_tokens": 12,
    "min_tokens": 3,
    "n": 2,
    "best_of": 2,
    "priority": -5,
    "cache_salt": "mine",
    "deadline": TOMORROW.isoformat(),
}
OF_ROUTE: dict[str, dict[str, Any]] = {
    CHAT: {"logprobs": True, "top_logprobs": 2},
    COMPLETIONS: {"logprobs": 2, "echo": True},
}


def meant(route, choice):
    """What the engine is asked for then, for each of the choices."""
    return SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        min_p=0.1,
        typical_p=0.8,
        frequency_penalty=-0.5,
        presence_penalty=1.5,
        repetition_penalty=1.1,
        logit_bias={65: -100.0, 66: 2.5},
        allowed_token_ids=(65, 66, 70),
        seed=11 + choice,
        stop_token_ids=(9,),
        max_tokens=12,
        min_tokens=3,
        num_logprobs=2,
        num_prompt_logprobs=2 if route == COMPLETIONS else None,
    )


# ---- over HTTP, to the engine ----------------------------------------------------------------------------------


def recording_engine():
    """An engine that keeps what it is asked for."""
    return RecordingEngine(ready(max_model_len=8192), token_id=ord("!"))


def read_clocks():
    """The wall's time and the engine's."""
    return time.time(), time.monotonic()


def check_submitted(engine, route, before, after):
    """The engine has been asked for everything, once for each choice, between these two readings of the clocks."""
    prompt = b"user: hi\nassistant: " if route == CHAT else b"hi"
    earliest = before[1] + TOMORROW.timestamp() - after[0]
    latest = after[1] + TOMORROW.timestamp() - before[0]
    for choice, submit in enumerate(engine.submitted):
        assert submit.sampling == meant(route, choice)
        assert submit.prompt == pack_token_ids(list(prompt))
        assert (submit.priority, submit.cache_salt) == (-5, "mine")
        assert earliest - 0.001 < submit.deadline_ns / 1e9 < latest + 0.001  # floats of seconds since 1970
    assert len(engine.submitted) == 2


@pytest.mark.parametrize("stream", [False, True])
@BOTH
async def test_every_parameter_reaches_the_engine(route, stream):
    """All of them at once, each different from its default: the engine's record of the request has every one."""
    fields = EVERYTHING | OF_ROUTE[route]
    assert set(PARAMETERS[route]) - set(fields) - OF_THE_SERVER - FORMS <= {"max_completion_tokens", "prompt_logprobs"}

    engine = recording_engine()
    async with serving(engine, MODEL) as url, httpx.AsyncClient(base_url=url) as client:
        before = read_clocks()
        body = (HI if route == CHAT else PROMPT) | fields | {"stream": stream}
        response = await client.post(route, json=body, headers={"X-Request-Deadline": TOMORROW.isoformat()})
        assert response.status_code == 200, response.text
        check_submitted(engine, route, before, read_clocks())


@BOTH
async def test_the_official_clients_parameters_reach_the_engine(route):
    """openai-python: its own names as arguments, the others by extra_body, the deadline as a header."""
    fields = EVERYTHING | OF_ROUTE[route]
    own = {"temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "max_tokens", "n"}
    own |= OF_ROUTE[route].keys()
    arguments = {name: fields.pop(name) for name in own}
    headers = {"X-Request-Deadline": fields.pop("deadline")}

    engine = recording_engine()
    async with (
        serving(engine, MODEL) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        before = read_clocks()
        of_route: Any = client.chat.completions if route == CHAT else client.completions
        prompt = HI if route == CHAT else PROMPT
        answer = await of_route.create(
            model="synthetic", **prompt, **arguments, extra_body=fields, extra_headers=headers
        )
        assert [choice.index for choice in answer.choices] == [0, 1]
        check_submitted(engine, route, before, read_clocks())


@BOTH
async def test_refused_requests_do_not_reach_the_engine(route):
    """A wrong field, a deadline that has passed, more choices than there is room for: the engine hears of none."""
    prompt = HI if route == CHAT else PROMPT

    engine = recording_engine()
    async with serving(engine, MODEL) as url, httpx.AsyncClient(base_url=url) as client:

        async def refused(fields, **headers):
            response = await client.post(route, json=prompt | fields, headers=headers)
            error = response.json()["error"]
            return response.status_code, error["param"] or error["code"]

        assert await refused({"min_p": 2}) == (400, "min_p")
        assert await refused({"n": 65}) == (400, "n")
        assert await refused({"deadline": "2020-01-01T00:00:00Z"}) == (408, "REQUEST_TIMEOUT")
        assert await refused({}, **{"X-Request-Deadline": "2020-01-01T00:00:00Z"}) == (408, "REQUEST_TIMEOUT")
        assert await refused({}, **{"X-Request-Deadline": "soon"}) == (400, "X-Request-Deadline")
        assert engine.submitted == []


@pytest.mark.parametrize("stream", [False, True])
@BOTH
async def test_no_value_is_the_servers_fault(route, stream):
    """Any field may hold anything: there is an answer, or a refusal that names the field, and never a 500."""
    values = [
        None,
        False,
        True,
        -1,
        0,
        1,
        2,
        0.5,
        10**400,
        "",
        "x",
        "1",
        [],
        [1],
        [-1],
        [9**9],
        ["1"],
        {},
        {"1": 1},
        {"x": 1},
    ]
    prompt = (HI if route == CHAT else PROMPT) | {"stream": stream}

    async with serving(recording_engine(), MODEL) as url, httpx.AsyncClient(base_url=url) as client:
        for field in set(PARAMETERS[route]) - FORMS:  # those would be compiled
            for value in values:
                response = await client.post(route, json=prompt | {field: value})
                if response.status_code == 200:
                    assert "error" not in response.text, (field, value)
                else:
                    error = response.json()["error"]
                    assert (response.status_code, re.split(r"[\[.]", error["param"])[0]) == (400, field)


@BOTH
async def test_several_choices_are_not_resumable(route):
    """A client that asks for event ids gets them for one choice; for several that is refused."""
    prompt = (HI if route == CHAT else PROMPT) | {"stream": True, "stream_options": {"resumable": True}}

    async with serving(recording_engine(), MODEL) as url, httpx.AsyncClient(base_url=url) as client:
        one, two = [await client.post(route, json=prompt | {"n": n}) for n in (1, 2)]
        assert "id: 1\n" in one.text
        assert one.text.endswith("data: [DONE]\n\n")
        assert (two.status_code, two.json()["error"]["param"]) == (400, "stream_options.resumable")


# ---- what they do ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow_server(start_server):
    """A server whose engine runs one sequence at a time."""
    return start_server("--model", "synthetic", "--synthetic-step-ms", "20", "--max-num-seqs", "1")


@contextlib.asynccontextmanager
async def occupied(server):
    """A client of a server whose engine is busy for 160 s at least, and the stream that it is busy with."""
    body = {"prompt": "a", "max_tokens": 8000, "stream": True, "stream_options": {"include_timing": True}}
    async with Client(server.address) as client:
        running = await client.open(COMPLETIONS, body)
        events = running.events()
        assert await anext(events)
        yield client, running, events


def soon(seconds):
    """A deadline."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def post(server, **fields):
    """The answer to a completion that is not streamed."""
    return httpx.post(server.url + COMPLETIONS, json=PROMPT | fields, timeout=60)


def test_stop_token_ends_the_output(synthetic_server):
    """It is counted and not shown."""
    text = bytes(synthetic.expected_tokens(list(b"hi"), 8)).decode()
    answer = post(synthetic_server, max_tokens=8, stop_token_ids=[ord(text[5])]).json()
    end = text.index(text[5])
    assert answer["choices"][0]["text"] == text[:end]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == end + 1


DEADLINES = (0.5, 4, 30)  # seconds; a longer one if a request did not begin in time


async def test_deadline_in_mid_stream_ends_it(synthetic_server):
    """What came before counts: an ordinary end, which says why it is one, streamed or not."""
    async with (
        Client(synthetic_server.address) as client,
        httpx.AsyncClient(base_url=synthetic_server.url, timeout=60) as http,
    ):
        for seconds in DEADLINES:
            deadline = datetime.now(UTC) + timedelta(seconds=seconds)
            body = PROMPT | {"max_tokens": 8000, "deadline": deadline.isoformat()}
            answered = asyncio.ensure_future(http.post(COMPLETIONS, json=body))
            while not (answered.done() or await rings_in_use(synthetic_server)):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            stream = await client.open(COMPLETIONS, body | {"stream": True})
            events = []
            if stream.status == 200:
                coming = stream.events()
                events = [await anext(coming)]
                with synthetic_server.stopped_engine():  # from the first token until the deadline has passed
                    while datetime.now(UTC) <= deadline:  # noqa: ASYNC110 - nothing happens meanwhile
                        await asyncio.sleep(0.01)
                events += [event async for event in coming]
            answer = await answered
            if events and "error" not in events[0] and answer.status_code == 200:
                break
    *chunks, done = events
    [whole] = answer.json()["choices"]
    assert (chunks[-1]["choices"][0]["finish_reason"], done) == ("deadline", "[DONE]")
    assert whole["finish_reason"] == "deadline"
    text = bytes(synthetic.expected_tokens(list(b"hi"), 8000)).decode()
    for got in (text_of(chunks), whole["text"]):
        assert 0 < len(got) < 8000
        assert text.startswith(got)


async def test_deadline_ends_every_choice(synthetic_server):
    """Each with what it has."""
    async with Client(synthetic_server.address) as client:
        for seconds in DEADLINES:
            body = PROMPT | {"n": 3, "max_tokens": 8000, "stream": True, "deadline": soon(seconds)}
            stream = await client.open(COMPLETIONS, body)
            events = [event async for event in stream.events()] if stream.status == 200 else []
            begun = {event["choices"][0]["index"] for event in events[:-1] if "error" not in event}
            if begun == {0, 1, 2}:
                break
    ends = {event["choices"][0]["index"]: event["choices"][0]["finish_reason"] for event in events[:-1]}
    assert (ends, events[-1]) == (dict.fromkeys(range(3), "deadline"), "[DONE]")


async def test_deadline_in_the_queue_is_a_timeout(narrow_server):
    """What expires before it has run is 408, or the error of a stream that has begun already."""
    async with (
        occupied(narrow_server) as (client, *_),
        httpx.AsyncClient(base_url=narrow_server.url, timeout=60) as http,
    ):
        answer = await http.post(COMPLETIONS, json=PROMPT, headers={"X-Request-Deadline": soon(0.5)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "REQUEST_TIMEOUT")
        for seconds in DEADLINES:
            stream = await client.open(COMPLETIONS, PROMPT | {"stream": True, "deadline": soon(seconds)})
            if stream.status == 200:
                break
        error, done = [event async for event in stream.events()]
        assert (error["error"]["code"], done) == ("REQUEST_TIMEOUT", "[DONE]")


async def test_smaller_priority_runs_earlier(narrow_server):
    """Of two that wait, the one that came later overtakes if its priority is smaller."""
    body = PROMPT | {"max_tokens": 3, "stream": True, "stream_options": {"include_timing": True}}

    async with occupied(narrow_server) as (client, running, events):
        plain = await client.open(COMPLETIONS, body)
        urgent = await client.open(COMPLETIONS, body | {"priority": -1})
        submitted_ns = time.monotonic_ns()
        later = 0
        while later < 2:  # steps that ended since: the second one has also begun since
            later += (await anext(events))["timing"]["committed_ns"] > submitted_ns
        running.abort()
        times = [
            [event["timing"]["committed_ns"] async for event in stream.events() if "timing" in event]
            for stream in (urgent, plain)
        ]
    assert times[0][-1] < times[1][0]


def test_cache_salt_parts_the_prefix_cache(synthetic_server, start_server):
    """A prompt is found again by a request with the same salt only, and not at all if the server was told so."""

    def cached(server, **fields):
        prompt = "salted " * 14 + "!!"  # 100 tokens, of which no other test has the first
        return post(server, prompt=prompt, max_tokens=1, **fields).json()["usage"]["prompt_tokens_details"]

    nothing, most = {"cached_tokens": 0}, {"cached_tokens": 96}  # whole blocks of 16
    asked = [("mine", nothing), ("mine", most), ("yours", nothing), ("yours", most), ("mine", most)]
    for salt, found in asked:
        assert cached(synthetic_server, cache_salt=salt) == found
    assert cached(synthetic_server) == nothing
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--no-prefix-caching") as server:
        assert [cached(server), cached(server)] == [nothing, nothing]
