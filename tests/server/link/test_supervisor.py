"""Which requests the server takes in each state, and how it starts and stops the engine."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from rbee.errors import EngineUnavailableError
from rbee.messages import Loading
from rbee.sampling_params import SamplingParams
from rbee.server.errors import Refusal, RefusalKind
from rbee.server.link.sequences import Choice
from rbee.server.link.supervisor import Supervisor
from rbee.transport import Observer, ServerState
from tests.fakes import RecordingSink
from tests.server.link.link_parts import SETTINGS, child_engines, until
from tests.server.link.supervisor_parts import PATIENCE, Delays, running, until_ready

if TYPE_CHECKING:
    import psutil

    from rbee.server.link.sequences import SequenceHandle

pytestmark = pytest.mark.anyio


def refusal_of(supervisor: Supervisor) -> tuple[RefusalKind, str | None, int | None]:
    """What a request is refused with now: its kind, code and seconds until a retry."""
    with pytest.raises(Refusal) as caught:
        supervisor.check_ready()
    return caught.value.kind, caught.value.code, caught.value.retry_after


def submit(supervisor: Supervisor) -> tuple[SequenceHandle, RecordingSink]:
    """A request of more tokens than its ring holds, and its sink. It is paused, so that it stays open."""
    sink = RecordingSink()
    choice = Choice(SamplingParams(max_tokens=2 * SETTINGS.ring_capacity), sink)
    [stream] = supervisor.client.submit_all("r", [1], [choice], received_ns=9)
    stream.pause()
    return stream, sink


async def test_each_state_has_its_refusal() -> None:
    """A request before the engine is ready, or while the server stops, is refused with the state as its code."""
    supervisor = Supervisor(SETTINGS)
    assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_starting", 2)
    supervisor.on_attached()
    supervisor.on_loading(Loading(stage="weights", done=1, total=3))
    assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_loading", 2)
    assert supervisor.progress == Loading(stage="weights", done=1, total=3)
    supervisor.refuse_new()
    assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_draining", 5)
    supervisor.on_attached()
    assert supervisor.state is ServerState.DRAINING


async def test_ready_engine_takes_requests_until_the_server_drains() -> None:
    """Open requests go on while new ones are refused, and `stop` ends them with an error."""
    async with running() as supervisor:
        ready = await until_ready(supervisor)
        assert supervisor.check_ready() is supervisor.ready is ready
        stream, sink = submit(supervisor)
        supervisor.refuse_new()
        assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_draining", 5)
        stream.resume()
        await until(lambda: sink.token_ids)
        assert sink.ends == []
    assert [error.code for error in sink.ends] == ["server_shutdown"]
    assert supervisor.state is ServerState.DEAD
    assert child_engines() == []


async def test_dead_engine_ends_its_requests(caplog: pytest.LogCaptureFixture) -> None:
    """What is open ends with an error, and new requests are refused with another one."""
    async with running() as supervisor:
        await until_ready(supervisor)
        _, sink = submit(supervisor)
        supervisor.kill()
        await until(lambda: sink.ends)
        assert [(error.kind, error.code, error.retry_after) for error in sink.ends] == [
            (RefusalKind.UNAVAILABLE, "engine_died", 10)
        ]
        assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_dead", 10)
        supervisor.refuse_new()
        assert supervisor.state is ServerState.DEAD
    assert "the engine process died (killed by SIGKILL" in caplog.text


async def test_engine_that_dies_before_it_is_ready_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """The start fails with the reason, which is logged too."""
    async with running() as supervisor:
        supervisor.kill()
        with pytest.raises(EngineUnavailableError, match="died before it was ready"):
            await until_ready(supervisor)
        assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_dead", 10)
    assert "died before it was ready" in caplog.text


async def test_stop_kills_an_engine_that_is_not_ready(caplog: pytest.LogCaptureFixture) -> None:
    """At once, and without an error in the log."""
    async with running() as supervisor:
        assert supervisor.ready is None
    assert supervisor.state is ServerState.DEAD
    assert child_engines() == []
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_engine_that_does_not_stop_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    """After the patience that `stop` is given."""
    supervisor = Supervisor(SETTINGS)
    await supervisor.start()
    await until_ready(supervisor)
    [engine] = child_engines()
    engine.suspend()
    await supervisor.stop(0)
    assert child_engines() == []
    assert "it is killed" in caplog.text


async def test_supervisor_can_be_started_again() -> None:
    """After `stop` it has a new engine, in the next epoch, also if the one before never got ready."""
    supervisor = Supervisor(SETTINGS)
    await supervisor.start()
    await supervisor.stop(PATIENCE)
    for epoch in (2, 3):
        await supervisor.start()
        assert (supervisor.state, supervisor.ready) == (ServerState.STARTING, None)
        with Observer(os.getpid()) as observer:
            assert observer.epoch == epoch
        await until_ready(supervisor)
        assert supervisor.client.counters()["server_state"] <= ServerState.READY
        await supervisor.stop(PATIENCE)


async def served(supervisor: Supervisor) -> None:
    """A request that the engine begins to answer."""
    stream, sink = submit(supervisor)
    stream.resume()
    await until(lambda: sink.token_ids)
    stream.cancel()


async def died(supervisor: Supervisor, engine: psutil.Process) -> list[Refusal]:
    """Kill the engine under a request; how that ends."""
    _, sink = submit(supervisor)
    engine.kill()
    await until(lambda: sink.ends)
    return sink.ends


async def test_dead_engine_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Open requests end with an error; the next engine takes the new ones, in a segment and an epoch of its own."""
    async with running(Delays(0, 0)) as supervisor:
        await until_ready(supervisor)
        for epoch in (2, 3):
            [engine] = child_engines()
            assert [(error.code, error.retry_after) for error in await died(supervisor, engine)] == [("engine_died", 1)]
            assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_dead", 1)
            await until(lambda: supervisor.state is ServerState.READY)
            await served(supervisor)
            assert engine not in child_engines()
            with Observer(os.getpid()) as observer:
                assert observer.epoch == epoch
        assert supervisor.restarts == {"died": 2, "hung": 0}
    assert child_engines() == []
    assert "killed by SIGKILL, perhaps out of memory); it is started again in 0.0 s" in caplog.text
    assert "the engine is ready again (epoch 3)" in caplog.text


async def test_engine_that_dies_while_it_is_started_again_is_replaced_too() -> None:
    """It need not have been ready: what counts is the budget."""
    async with running(Delays(0, 0)) as supervisor:
        await until_ready(supervisor)
        [engine] = child_engines()
        engine.kill()
        await until(lambda: [child for child in child_engines() if child != engine])
        [second] = child_engines()
        second.kill()
        await until(lambda: supervisor.state is ServerState.READY)
        with Observer(os.getpid()) as observer:
            assert observer.epoch == 3


async def test_engine_that_dies_too_often_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """The supervisor says how it died; new requests are refused for good."""
    async with running(Delays(0)) as supervisor:
        await until_ready(supervisor)
        [engine] = child_engines()
        await died(supervisor, engine)
        await until(lambda: supervisor.state is ServerState.READY)
        supervisor.kill()
        async with asyncio.timeout(PATIENCE):
            assert await supervisor.wait_given_up() == "killed by SIGKILL, perhaps out of memory"
        assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_dead", 10)
        assert supervisor.restarts == {"died": 1, "hung": 0}, "the second death was the end"
    assert "perhaps out of memory) after 1 restarts in 60 s; new requests get 503" in caplog.text


async def test_stop_does_not_wait_for_a_restart() -> None:
    """Nothing is started any more."""
    async with running(Delays(1e6)) as supervisor:
        await until_ready(supervisor)
        supervisor.kill()
        await until(lambda: supervisor.state is ServerState.DEAD)
    assert child_engines() == []


async def test_engine_that_ends_while_the_server_stops_is_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Its requests end, and nothing follows."""
    async with running(Delays(0)) as supervisor:
        await until_ready(supervisor)
        supervisor.refuse_new()
        supervisor.kill()
        await until(lambda: supervisor.state is ServerState.DEAD)
        await until(lambda: not child_engines())
        assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_dead", 10)
    assert "started again" not in caplog.text


async def test_restart_that_is_due_while_the_server_stops_does_not_happen() -> None:
    """The server drains meanwhile."""
    async with running(Delays(0)) as supervisor:
        await until_ready(supervisor)
        [engine] = child_engines()
        await died(supervisor, engine)
        supervisor.refuse_new()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert child_engines() == []
        assert supervisor.state is ServerState.DEAD


async def test_engine_that_hangs_is_killed_and_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """A stopped process shows no sign of life; its requests end, and the next engine takes new ones."""
    async with running(Delays(0), hang_timeout=3) as supervisor:
        await until_ready(supervisor)
        [engine] = child_engines()
        _, sink = submit(supervisor)
        engine.suspend()
        await until(lambda: supervisor.state is ServerState.DEAD)
        assert refusal_of(supervisor) == (RefusalKind.UNAVAILABLE, "engine_dead", 1)
        await until(lambda: sink.ends)
        assert [error.code for error in sink.ends] == ["engine_died"]
        await until(lambda: supervisor.state is ServerState.READY)
        await served(supervisor)
        assert engine not in child_engines()
        assert supervisor.restarts == {"died": 0, "hung": 1}
    assert "the engine has made no progress for 3 s; it is killed" in caplog.text
    assert "the engine process died (it hung); it is started again" in caplog.text


async def test_engine_that_hangs_while_the_server_drains_is_killed() -> None:
    """Its streams could not end otherwise; nothing is started again."""
    async with running(Delays(0), hang_timeout=3) as supervisor:
        await until_ready(supervisor)
        [engine] = child_engines()
        _, sink = submit(supervisor)
        supervisor.refuse_new()
        engine.suspend()
        await until(lambda: sink.ends)
        assert [error.code for error in sink.ends] == ["engine_died"]
        await until(lambda: not child_engines())
