"""Bodies that never end: what they take from the server, and from others."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.faults.faults_parts import held, memory_kb, until_held
from tests.faults.resume_parts import hang_up, read_head
from tests.faults.test_bodies import post
from tests.raw_client import COMPLETIONS, Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

pytestmark = pytest.mark.anyio

MIB = 2**20
LIMIT = 4 * MIB
AT_ONCE = 2  # for which there is room


async def status_of(client: Client, prompt: str) -> int:
    """Of a request on a connection of its own, which is closed then."""
    answer = await client.open(COMPLETIONS, {"prompt": prompt, "max_tokens": 1})
    answer.abort()
    return answer.status


async def test_unfinished_bodies_take_little_memory(start_server: Callable[..., Server]) -> None:
    """Two of them wait for their last byte, the others for room and are refused; small requests do not notice."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--max-body-mib", "4") as server:
        async with Client(server.address) as client:
            before, memory = await held(server), memory_kb(server)
            sockets = []
            for _ in range(40):
                reader, writer = await client.send_raw(post(COMPLETIONS, b"", LIMIT))
                writer.write(b" " * (LIMIT - 1))
                sockets.append((reader, writer))
            answers = [asyncio.ensure_future(read_head(reader)) for reader, _ in sockets]
            while sum(answer.done() for answer in answers) < len(answers) - AT_ONCE:
                assert await status_of(client, "small") == 200
                await asyncio.sleep(0.05)
            refused = Counter(answer.result()[0] for answer in answers if answer.done())
            assert refused == {429: len(answers) - AT_ONCE}
            assert memory_kb(server) - memory < 64 * 1024
            for answer, (reader, writer) in zip(answers, sockets, strict=True):
                if not answer.done():
                    writer.write(b"x")
                    assert (await answer)[0] == 400
                    assert json.loads(await reader.read())["error"]["code"] == "invalid_json"
                writer.transport.abort()
            assert await status_of(client, " " * MIB) == 400, "the room is free again"
            await until_held(server, before)


async def test_clients_that_leave_give_their_room_back(start_server: Callable[..., Server]) -> None:
    """Also those that wait for room."""
    with start_server("--model", "synthetic", "--max-body-mib", "4") as server:
        async with Client(server.address) as client:
            before = await held(server)
            for _ in range(3):
                writers = []
                for _ in range(2 * AT_ONCE):
                    _, writer = await client.send_raw(post(COMPLETIONS, b"", LIMIT))
                    writer.write(b" " * (LIMIT - 1))
                    writers.append(writer)
                assert await status_of(client, "beside") == 200
                for writer in writers:
                    hang_up(writer, reset=True)
            assert await status_of(client, " " * MIB) == 400
            await until_held(server, before)
