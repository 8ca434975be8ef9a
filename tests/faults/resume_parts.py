"""What the tests of resumption share: requests with ids, bytes that are cut anywhere, and the events in them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from tests.raw_client import CHAT, COMPLETIONS, request_bytes
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import Server
    from tests.raw_client import Client

EVENTS = "Accept: text/event-stream"
CLOSE = "Connection: close"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: the kernel sends RST at once instead of FIN
RESUMABLE = {"stream": True, "stream_options": {"resumable": True}}
LONG = {"prompt": "long", "max_tokens": 8000, **RESUMABLE}


class Event(NamedTuple):
    """One SSE event: its id and its data, parsed JSON or "[DONE]"."""

    id: int
    data: Any


def decode_chunked(raw: bytes) -> bytes:
    """The body in the raw bytes of a response, as far as they have come."""
    body = b""
    while (size := raw.partition(b"\r\n")) and size[1]:
        length = int(size[0], 16)
        body += size[2][:length]
        raw = size[2][length + 2 :]
    return body


def parse_events(body: bytes) -> list[Event]:
    """What an SSE parser makes of a body that may be cut anywhere: an event ends with a blank line, else it is none."""
    events = []
    for block in body.split(b"\n\n")[:-1]:
        match = re.fullmatch(rb"(?::.*\n)*id: (\d+)\ndata: (.*)", block)  # perhaps comments before it
        assert match is not None, block
        number, data = match.groups()
        events.append(Event(int(number), "[DONE]" if data == b"[DONE]" else json.loads(data)))
    return events


def last_id(events: Sequence[Event]) -> int:
    """The id of the last event that a client has; 0 if it has none."""
    return events[-1].id if events else 0


def text_of(events: Sequence[Event]) -> str:
    """What the chunks say, of either kind."""
    choices = [choice for event in events if event.data != "[DONE]" for choice in event.data.get("choices", [])]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def check_whole(events: Sequence[Event], text: str, finish: str) -> None:
    """These are all events of one stream, each once."""
    assert text_of(events) == text
    *chunks, done = [event.data for event in events]
    assert done == "[DONE]"
    assert "[DONE]" not in chunks
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + [finish]
    roles = ["role" in choice["delta"] for chunk in chunks for choice in chunk["choices"] if "delta" in choice]
    assert not any(roles[1:])
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))


def hang_up(writer: asyncio.StreamWriter, *, reset: int) -> None:
    """Drop a connection: with a reset, or with a polite end, which a client that still waits sends as well."""
    if reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers of a response."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    fields = {}
    for line in lines[1:-2]:
        name, value = line.lower().split(": ", 1)
        fields[name] = value
    return int(lines[0].split()[1]), fields


async def read_cut(client: Client, request: bytes, size: int) -> tuple[bytes, asyncio.StreamWriter, str]:
    """The first `size` bytes behind the head of a response, or all there are; the connection; a header for the rest."""
    reader, writer = await client.send_raw(request)
    status, headers = await read_head(reader)
    assert status == 200
    name = f"X-Stream-Id: {headers['x-stream-id']}"
    try:
        return await reader.readexactly(size), writer, name
    except asyncio.IncompleteReadError as everything:
        return everything.partial, writer, name


async def read_rest(client: Client, request: bytes) -> list[Event]:
    """All events of a response; none if there are none to come (204)."""
    reader, writer = await client.send_raw(request)
    status, _ = await read_head(reader)
    assert status in {200, 204}
    events = parse_events(decode_chunked(await reader.read()))
    writer.close()
    return events


def get(path: str, *headers: str) -> bytes:
    """What EventSource sends."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", EVENTS, CLOSE, *headers, "", ""]).encode()


def post(path: str, body: dict[str, Any], *headers: str) -> bytes:
    """What fetch-event-source sends."""
    return request_bytes(path, body, EVENTS, CLOSE, *headers)


async def first_events(
    client: Client, request: bytes, number: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, dict[str, str], list[Event]]:
    """The connection, headers and first events of a stream."""
    reader, writer = await client.send_raw(request)
    status, headers = await read_head(reader)
    assert status == 200
    raw = b""
    while len(events := parse_events(decode_chunked(raw))) < number:
        raw += await reader.read(4096)
    return reader, writer, headers, events


async def refusal(
    server: Server,
    method: str,
    path: str,
    *,
    key: str | None = None,
    body: dict[str, Any] | None = None,
    **headers: str,
) -> tuple[int, str | None]:
    """Status and code of a refusal."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        names["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
        answer = await client.request(method, path, json=body, headers=names)
    return answer.status_code, answer.json()["error"]["code"]


CHAT_BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, **RESUMABLE}
COMPLETION_BODY = {"prompt": "hi", "max_tokens": 12, **RESUMABLE}
CASES = pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [(CHAT, CHAT_BODY, "user: hi\nassistant: "), (COMPLETIONS, COMPLETION_BODY, "hi")],
    ids=["chat", "completions"],
)
