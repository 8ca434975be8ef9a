"""What an exchange leaves behind, in this process with a real engine: nothing."""

import asyncio
import contextlib

import pytest

from rbee.config import EngineConfig
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.admission import ANYONE
from rbee.server.link.engine_process import EngineSettings
from rbee.server.link.supervisor import Supervisor
from rbee.server.streams.generation import Prompt
from tests.fakes import RecordingWatch, RecordingWriter
from tests.server.streams.streams_parts import (
    AnsweringClient,
    collected,
    make_echo,
    make_exchange,
    make_generation,
    no_receive,
    writing_to,
)

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def running_supervisor():
    """A supervisor with a synthetic engine that is ready."""
    engine = EngineConfig(model="synthetic", synthetic_step_ms=1)
    settings = EngineSettings(config=engine, slow_reader_timeout=60, num_rings=64, ring_capacity=1024)
    supervisor = Supervisor(settings)
    await supervisor.start()
    try:
        await supervisor.wait_ready()
        yield supervisor
    finally:
        supervisor.refuse_new()
        await supervisor.stop(5)


async def test_choices_differ_in_their_seeds_only():
    """That of choice i is i more, and stays a seed; all else that a generation says reaches the engine with each."""
    client = AnsweringClient()
    generation = make_generation(5, seed=2**63 - 2, n=3, priority=-1, deadline_ns=2**62, cache_salt="salt")
    await collected(make_exchange(client, generation, RecordingWatch()))
    sampling = [SamplingParams(max_tokens=5, seed=seed) for seed in (2**63 - 2, 2**63 - 1, -(2**63))]
    options = {"received_ns": 7, "priority": -1, "deadline_ns": 2**62, "cache_salt": "salt"}
    assert client.submitted == [([[1]] * 3, sampling, options | {"requester": ANYONE})]


async def test_each_prompt_has_the_choices_that_it_would_have_alone():
    """Choice j of prompt i is sequence i * n + j, with the seed of choice j."""
    client = AnsweringClient()
    generation = make_generation(5, seed=-1, n=2, more_prompts=(Prompt([2, 3]), Prompt([4])))
    answer = await collected(make_exchange(client, generation, RecordingWatch()))
    [(prompts, sampling, _)] = client.submitted
    assert prompts == [[1], [1], [2, 3], [2, 3], [4], [4]]
    assert [params.seed for params in sampling] == [-1, 0] * 3
    assert [choice["index"] for choice in answer["choices"]] == [*range(6)]
    assert answer["usage"]["prompt_tokens"] == 4


async def answered(answer, generation):
    """The text of the response, when the engine answers so."""
    [choice] = (await collected(make_exchange(AnsweringClient(answer.encode()), generation, RecordingWatch())))[
        "choices"
    ]
    return choice["text"]


async def test_min_tokens_is_for_stop_strings_too():
    """One that is complete too early is text."""
    assert await answered("aENDbEND", make_generation(9, stops=["END"], min_tokens=4)) == "aENDb"


async def test_prompt_is_echoed_as_it_was_given():
    """As text, if it was text; its tokens need not say the same."""
    assert await answered("b", make_generation(1, echo=make_echo([1], "A "))) == "A b"
    assert await answered("b", make_generation(1, echo=make_echo([1], None))) == "\x01b"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_ended_stream_is_forgotten(cancelled):
    """When a stream has ended, or its task was cancelled in the middle, nothing looks after it or waits for it."""
    async with asyncio.timeout(60), running_supervisor() as supervisor:
        watch, writer, sent = RecordingWatch(), RecordingWriter(), []
        generation = make_generation(8000 if cancelled else 5)
        exchange = make_exchange(supervisor, generation, watch, stream=True)

        async def send(message):
            sent.append(message["type"])

        task = asyncio.ensure_future(exchange(writing_to(writer), no_receive, send))
        while not writer.written:  # noqa: ASYNC110 - written by another process, in effect
            await asyncio.sleep(0)
        assert writer.listener is not None
        if cancelled:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert sent == ["http.response.start"]
        else:
            await task
            assert sent == ["http.response.start", "http.response.body"]
        await supervisor.client.wait_idle()
        assert watch.open == set()
        assert writer.listener is None


async def test_request_that_was_prepared_too_long_is_refused():
    """The engine may have gone while a large prompt was tokenized: the request is not handed to it then."""
    async with asyncio.timeout(60), running_supervisor() as supervisor:
        exchange = make_exchange(supervisor, make_generation(5), RecordingWatch())
        supervisor.refuse_new()
        with pytest.raises(Refusal) as caught:
            await collected(exchange)
        assert (caught.value.kind, caught.value.code) == (RefusalKind.UNAVAILABLE, "engine_draining")
        assert supervisor.client.rings_in_use == 0
