"""Requests whose engine process is killed before their first token, with --retry-unstarted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from rbee.config import EngineConfig
from rbee.messages import FinishReason
from rbee.sampling_params import SamplingParams
from rbee.server.link.sequences import Choice
from rbee.transport import ServerState
from tests.fakes import RecordingSink
from tests.server.link.link_parts import SETTINGS, child_engines, until
from tests.server.link.supervisor_parts import PATIENCE, Delays, running, until_ready

if TYPE_CHECKING:
    from rbee.server.link.sequences import SequenceHandle
    from rbee.server.link.supervisor import Supervisor

pytestmark = pytest.mark.anyio

NO_TOKEN = EngineConfig(model="synthetic", synthetic_step_ms=1e8, kv_cache_mib=1)
"""Of an engine whose first step takes a day."""


def submit(supervisor: Supervisor, max_tokens: int = 5) -> tuple[SequenceHandle, RecordingSink]:
    """A request, and its sink."""
    sink = RecordingSink()
    choice = Choice(SamplingParams(max_tokens=max_tokens), sink)
    [handle] = supervisor.client.submit_all("r", [1], [choice], received_ns=9)
    return handle, sink


def codes(sink: RecordingSink) -> list[Any]:
    """How it ended."""
    return [end if isinstance(end, FinishReason) else getattr(end, "code", end) for end in sink.ends]


async def test_what_has_no_token_is_answered_by_the_next_engine() -> None:
    """In every epoch anew; a request with tokens ends with its error."""
    async with running(Delays(0, 0), retry_unstarted=True) as supervisor:
        await until_ready(supervisor)
        for _ in range(2):
            [engine] = child_engines()
            stream, begun = submit(supervisor, 2 * SETTINGS.ring_capacity)
            await until(lambda: begun.token_ids)  # noqa: B023 - awaited here
            stream.pause()
            engine.suspend()
            _, first = submit(supervisor)
            left, second = submit(supervisor)
            engine.kill()
            await until(lambda: begun.ends)  # noqa: B023 - awaited here
            left.cancel()
            assert codes(begun) == ["engine_died"]
            assert (first.ends, first.token_ids) == ([], [])
            await until(lambda: first.ends)  # noqa: B023 - awaited here
            assert supervisor.state is ServerState.READY
            assert (codes(first), len(first.token_ids)) == ([FinishReason.LENGTH], 5)
            assert (second.ends, second.token_ids) == ([], [])


async def test_request_that_kills_every_engine_kills_two() -> None:
    """Then it ends with the error, and the third engine has nothing to do."""
    async with running(Delays(0, 0), config=NO_TOKEN, retry_unstarted=True) as supervisor:
        await until_ready(supervisor)
        _, sink = submit(supervisor)
        supervisor.kill()
        await until(lambda: supervisor.state is ServerState.DEAD)
        await until(lambda: supervisor.state is ServerState.READY)
        assert (sink.ends, supervisor.client.rings_in_use) == ([], 1)
        supervisor.kill()
        await until(lambda: sink.ends)
        assert codes(sink) == ["engine_died"]
        await until(lambda: supervisor.state is ServerState.READY)
        assert supervisor.client.rings_in_use == 0


async def test_server_that_gives_up_ends_what_waits() -> None:
    """The next engine dies while it is started, and was the last one."""
    async with running(Delays(0), config=NO_TOKEN, retry_unstarted=True) as supervisor:
        await until_ready(supervisor)
        [engine] = child_engines()
        _, sink = submit(supervisor)
        engine.kill()
        await until(lambda: [child for child in child_engines() if child != engine])
        assert sink.ends == []
        [second] = [child for child in child_engines() if child != engine]
        second.kill()
        async with asyncio.timeout(PATIENCE):
            await supervisor.wait_given_up()
        assert codes(sink) == ["engine_died"]


async def test_server_that_stops_ends_what_waits() -> None:
    """At once: there will be no other engine."""
    async with running(Delays(1e6), config=NO_TOKEN, retry_unstarted=True) as supervisor:
        await until_ready(supervisor)
        _, sink = submit(supervisor)
        supervisor.kill()
        await until(lambda: supervisor.state is ServerState.DEAD)
        assert sink.ends == []
        supervisor.refuse_new()
        assert codes(sink) == ["server_shutdown"]


async def test_without_the_option_they_end() -> None:
    """As those with tokens do."""
    async with running(Delays(0), config=NO_TOKEN) as supervisor:
        await until_ready(supervisor)
        _, sink = submit(supervisor)
        supervisor.kill()
        await until(lambda: sink.ends)
        assert codes(sink) == ["engine_died"]
