"""What an exchange leaves behind, in this process with a real engine: nothing."""

import asyncio
import contextlib

import pytest
from fakes import RecordingWriter

from rbee.config import EngineConfig
from rbee.sampling_params import SamplingParams
from rbee.server import served_model
from rbee.server.errors import ApiError
from rbee.server.exchange import Exchange, Generation
from rbee.server.replies import StreamWatch
from rbee.server.schemas import StreamOptions
from rbee.server.supervisor import Supervisor


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


def some_generation(max_tokens):
    """A streamed completion."""
    return Generation(
        chat=False,
        prompt=[1],
        sampling=SamplingParams(max_tokens=max_tokens),
        stops=[],
        stream=True,
        options=StreamOptions(),
        ignored=[],
    )


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
