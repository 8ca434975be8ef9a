"""Bodies that are cut, broken or too large: each costs its own request, and nothing else."""

import asyncio
import json
import random

import pytest

from tests.faults.faults_parts import held, until_held
from tests.faults.resume_parts import read_head
from tests.raw_client import CHAT, COMPLETIONS, Client, text_of
from tests.server.server_parts import expected

pytestmark = pytest.mark.anyio

BODIES = {
    COMPLETIONS: {"prompt": "a \u00fc \U0001f41d", "max_tokens": 2, "stop": ["x"], "logit_bias": {"5": -1.5}},
    CHAT: {"messages": [{"role": "user", "content": "\u00fc"}], "max_tokens": 2, "seed": 7, "stream": False},
}
CLOSE = "Connection: close\r\n"


def post(path, content, length=None):
    """The bytes of a request whose Content-Length may be wrong."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{CLOSE}"
    return f"{head}Content-Length: {len(content) if length is None else length}\r\n\r\n".encode() + content


async def answer_to(client, request):
    """Status and body of the answer."""
    reader, _ = await client.send_raw(request)
    status, _ = await read_head(reader)
    return status, await reader.read()


async def check_refusal(client, request, statuses):
    """Answered with one of these statuses, and a sentence in the envelope of errors if it is none of 200."""
    status, body = await answer_to(client, request)
    assert status in statuses, (request[-200:], body)
    if status != 200:
        error = json.loads(body)["error"]
        assert error["message"].endswith((".", "?")), error
        assert error["code"]


async def beside_a_stream(server, attack):
    """Run it while a stream is read to its end; afterwards the server holds what it held."""
    before = await held(server)
    async with Client(server.address) as client:
        stream = await client.open(COMPLETIONS, {"prompt": "beside", "max_tokens": 500, "stream": True})
        await attack(client)
        assert text_of([event async for event in stream.events()]) == expected("beside", 500)
    await until_held(server, before)


@pytest.mark.parametrize("path", BODIES)
async def test_body_cut_at_every_byte(synthetic_server, path):
    """With a length that fits it is no JSON: 400."""
    content = json.dumps(BODIES[path], ensure_ascii=False).encode()

    async def attack(client):
        await check_refusal(client, post(path, content), {200})
        for cut in range(len(content)):
            await check_refusal(client, post(path, content[:cut]), {400})

    await beside_a_stream(synthetic_server, attack)


@pytest.mark.parametrize("path", BODIES)
async def test_connection_that_ends_inside_its_body(synthetic_server, path):
    """There is nobody to answer: the connection is closed, and nothing is kept."""
    content = json.dumps(BODIES[path], ensure_ascii=False).encode()

    async def attack(client):
        for cut in range(0, len(content), 5):
            reader, writer = await client.send_raw(post(path, content[:cut], len(content)))
            writer.write_eof()
            assert not (await reader.read()).startswith(b"HTTP/1.1 200")

    await beside_a_stream(synthetic_server, attack)


@pytest.mark.parametrize("seed", [41, 42])
@pytest.mark.parametrize("path", BODIES)
async def test_bytes_changed_at_random(synthetic_server, path, seed):
    """A few bytes replaced, removed or doubled: served if it still is a request, else refused by a sentence."""
    chance = random.Random(seed)
    whole = json.dumps(BODIES[path], ensure_ascii=False).encode()

    def broken():
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(content))
            piece = chance.choice([b"", bytes([chance.randrange(256)]), bytes(content[place : place + 9]) * 2])
            content[place : place + 1] = piece
        return bytes(content)

    async def attack(client):
        for _ in range(150):
            await check_refusal(client, post(path, broken()), {200, 400})

    await beside_a_stream(synthetic_server, attack)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"[" * 200_000, 400),
        (b'{"prompt":' * 50_000, 400),
        (b'{"prompt":"' + b"x" * 2**20, 400),
        (b'{"prompt":"x","max_tokens":' + b"9" * 5000 + b"}", 400),
        (b'{"prompt":"' + b"\\ud800" * 1000 + b'"}', 400),
        (b"\x00" * 2**20, 400),
        (b'{"prompt":"' + b"x" * 2**20 + b'"}', 400),
    ],
    ids=["deep list", "deep objects", "no end", "long number", "half surrogates", "zeros", "long prompt"],
)
async def test_large_bodies(synthetic_server, content, status):
    """Each is refused with a sentence; the stream beside it does not notice."""

    async def attack(client):
        await check_refusal(client, post(COMPLETIONS, content), {status})

    await beside_a_stream(synthetic_server, attack)


async def test_body_that_is_announced_as_too_large(synthetic_server):
    """It is refused before it is there."""

    async def attack(client):
        await check_refusal(client, post(COMPLETIONS, b" ", 2**40), {413})

    await beside_a_stream(synthetic_server, attack)


async def test_broken_bodies_of_a_real_model(default_server):
    """The same with the default model, a few: what comes next is served."""

    async def attack(client):
        for path, body in BODIES.items():
            content = json.dumps(body).encode()
            for cut in range(0, len(content), 10):
                await check_refusal(client, post(path, content[:cut]), {400})
            await check_refusal(client, post(path, content), {200})

    before = await held(default_server)
    async with Client(default_server.address) as client:
        await asyncio.gather(*(attack(client) for _ in range(4)))
    await until_held(default_server, before)
