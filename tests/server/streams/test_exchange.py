"""What an exchange leaves behind, in this process with a real engine: nothing."""

import asyncio
import contextlib
import json

import pytest

from rbee.config import EngineConfig
from rbee.messages import SIDE_RECORD, FinishReason
from rbee.sampling_params import SamplingParams
from rbee.server.errors import ApiError
from rbee.server.link.supervisor import Supervisor
from rbee.server.protocols.openai.schemas import StreamOptions
from rbee.server.streams.exchange import Exchange, Generation
from rbee.server.streams.replies import StreamWatch
from rbee.server.text import served_model
from tests.batches import batch
from tests.fakes import RecordingStream, RecordingWriter


@contextlib.asynccontextmanager
async def running_supervisor():
    """A supervisor with a synthetic engine that is ready."""
    engine = EngineConfig(model="synthetic", synthetic_step_ms=1)
    supervisor = Supervisor(engine, max_requests=64, ring_capacity=1024)
    await supervisor.start()
    try:
        await supervisor.settled
        yield supervisor
    finally:
        supervisor.refuse_new()
        await supervisor.stop(5)


def some_generation(max_tokens, *, seed=0, min_tokens=0, stops=(), **more):
    """A streamed completion."""
    return Generation(
        chat=False,
        prompt=[1],
        sampling=SamplingParams(max_tokens=max_tokens, seed=seed, min_tokens=min_tokens),
        stops=list(stops),
        stream=True,
        options=StreamOptions(),
        ignored=[],
        **more,
    )


class RecordingClient:
    """An EngineClient, and its supervisor, without an engine: keeps what is submitted, and answers with a text."""

    def __init__(self, answer="A"):
        self.client = self
        self.submitted = []
        self._answer = answer.encode()

    def check_ready(self):
        """It always is."""

    def submit_all(self, request_id, prompt, choices, **options):  # noqa: ARG002 - the client's signature
        """Keep it; each choice ends at once."""
        self.submitted.append((prompt, [choice.sampling for choice in choices], options))
        for choice in choices:
            told = [SIDE_RECORD] if choice.report_cached else []
            records = batch([*told, *self._answer], FinishReason.LENGTH)
            asyncio.get_running_loop().call_soon(choice.sink.deliver, records)
        return [RecordingStream() for _ in choices]


def test_choices_differ_in_their_seeds_only():
    """That of choice i is i more, and stays a seed; all else that a generation says reaches the engine with each."""

    async def run():
        client, model = RecordingClient(), served_model.load_synthetic("s")
        generation = some_generation(5, seed=2**63 - 2, n=3, priority=-1, deadline_ns=7, cache_salt="salt")
        await Exchange(client, model, StreamWatch(5, 60), generation, RecordingWriter()).collect()
        sampling = [SamplingParams(max_tokens=5, seed=seed) for seed in (2**63 - 2, 2**63 - 1, 0)]
        assert client.submitted == [([1], sampling, {"priority": -1, "deadline_ns": 7, "cache_salt": "salt"})]

    asyncio.run(run())


def answered(answer, generation):
    """The text of the response, when the engine answers so."""

    async def run():
        client, model = RecordingClient(answer), served_model.load_synthetic("s")
        response = await Exchange(client, model, StreamWatch(5, 60), generation, RecordingWriter()).collect()
        [choice] = json.loads(response.body)["choices"]
        return choice["text"]

    return asyncio.run(run())


def test_min_tokens_is_for_stop_strings_too():
    """One that is complete too early is text."""
    assert answered("aENDbEND", some_generation(9, stops=["END"], min_tokens=4)) == "aENDb"


def test_prompt_is_echoed_as_it_was_given():
    """As text, if it was text; its tokens need not say the same."""
    assert answered("b", some_generation(1, echo=True, prompt_text="A ")) == "A b"
    assert answered("b", some_generation(1, echo=True)) == "\x01b"


@pytest.mark.parametrize("cancelled", [False, True])
def test_ended_stream_is_forgotten(cancelled):
    """When a stream has ended, or its task was cancelled in the middle, nothing looks after it or waits for it."""

    async def run():
        async with asyncio.timeout(60), running_supervisor() as supervisor:
            watch, writer, sent = StreamWatch(5, 60), RecordingWriter(), []
            generation = some_generation(8000 if cancelled else 5)
            exchange = Exchange(supervisor, served_model.load_synthetic("s"), watch, generation, writer)

            async def send(message):
                sent.append(message["type"])

            task = asyncio.ensure_future(exchange({}, None, send))
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
            assert watch._open == set()
            assert writer.listener is None

    asyncio.run(run())


def test_request_that_was_prepared_too_long_is_refused():
    """The engine may have gone while a large prompt was tokenized: the request is not handed to it then."""

    async def run():
        async with asyncio.timeout(60), running_supervisor() as supervisor:
            model = served_model.load_synthetic("s")
            exchange = Exchange(supervisor, model, StreamWatch(5, 60), some_generation(5), RecordingWriter())
            supervisor.refuse_new()
            with pytest.raises(ApiError) as caught:
                await exchange.collect()
            assert (caught.value.status, caught.value.code) == (503, "engine_draining")
            assert supervisor.client.rings_in_use == 0

    asyncio.run(run())
