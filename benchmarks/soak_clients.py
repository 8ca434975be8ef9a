"""The clients of a soak: streams on raw sockets in one process, each with one known end.

Owns how a client behaves and how its stream ended. Does not know when faults come, or what a server holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections import Counter
from typing import TYPE_CHECKING

from faulty_server import RESET
from sse_client import http_request

from rbee.models import synthetic

if TYPE_CHECKING:
    from collections.abc import Callable

_TEXT = re.compile(rb'"text":"([^"\\]*)"')
_CODE = re.compile(rb'"error":\{.*?"code":"(\w+)"')
_LOST = "lost"
PATIENCE = 120.0  # seconds, in which a stream must have ended
PROMPTS = 997  # different ones, after which the expected answers come again
LONGEST = 400  # tokens

KINDS = ("reads", "leaves", "slow")
_WEIGHTS = (70, 20, 10)


class Answers:
    """What the synthetic model answers to each prompt; computed once."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def of(self, prompt: str) -> bytes:
        """The first `LONGEST` tokens, a byte each."""
        if prompt not in self._known:
            self._known[prompt] = bytes(synthetic.expected_tokens(list(prompt.encode()), LONGEST))
        return self._known[prompt]


class Clients:
    """So many clients, each of which asks for one stream after the other until `stop`.

    Every stream has one end in `ends`: "finished" (all tokens, and [DONE]), "left" (its client went away), the code of
    the error that it was told, or "lost": no end, or tokens that are missing, repeated or in another order. `problems`
    says what was lost, the first few.
    """

    def __init__(self, url: str, number: int, seed: int) -> None:
        self.ends: Counter[str] = Counter()
        self.opened = 0
        self.tokens = 0
        self.problems: list[str] = []
        self._url = url
        self._number = number
        self._seed = seed
        self._answers = Answers()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`, and until the last stream has ended."""
        await asyncio.gather(*(self._client(index) for index in range(self._number)))

    def stop(self) -> None:
        """Begin no further streams."""
        self._stopping.set()

    async def _client(self, index: int) -> None:
        chance = random.Random(self._seed * 1_000_003 + index)
        while not self._stopping.is_set():
            [kind] = chance.choices(KINDS, _WEIGHTS)
            prompt = f"soak {chance.randrange(PROMPTS)}"
            tokens = chance.randrange(1, LONGEST + 1)
            self.opened += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    end = await _Stream(self._url, prompt, tokens, kind, chance).run(self._count)
            except (AssertionError, TimeoutError) as error:
                end = _LOST
                if len(self.problems) < 10:
                    self.problems.append(f"{prompt!r}, {tokens} tokens, {kind}: {str(error) or 'no end'}")
            self.ends[end] += 1
            if end not in {"finished", "left"}:  # as a client that was told to come back later
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), chance.uniform(0.5, 1.5))

    def _count(self, prompt: str, text: bytes) -> None:
        self.tokens += len(text)
        assert text == self._answers.of(prompt)[: len(text)], "tokens are missing, repeated or in another order"


class _Stream:
    """One stream."""

    def __init__(self, url: str, prompt: str, tokens: int, kind: str, chance: random.Random) -> None:
        payload = {"prompt": prompt, "max_tokens": tokens, "stream": True}
        self._host, self._port, self._request = http_request(url, "/v1/completions", payload)
        self._prompt, self._tokens, self._kind, self._chance = prompt, tokens, kind, chance

    async def run(self, count: Callable[[str, bytes], None]) -> str:
        """How it ended; AssertionError if it is lost. `count` is called with its text."""
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            if self._kind == "slow":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            enough = self._chance.randrange(self._tokens * 180) if self._kind == "leaves" else None
            raw = bytearray()
            try:
                await loop.sock_connect(sock, (self._host, self._port))
                await loop.sock_sendall(sock, self._request)
                while not raw.endswith(b"\r\n0\r\n\r\n") and not self._is_refusal(raw):
                    if enough is not None and len(raw) >= enough:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        count(self._prompt, b"".join(_TEXT.findall(raw)))
                        return "left"
                    if self._kind == "slow":
                        await asyncio.sleep(self._chance.uniform(0, 0.2))
                    piece = await loop.sock_recv(sock, 2048 if self._kind == "slow" else 65536)
                    assert piece, "the connection ended before the stream did"
                    raw += piece
            except ConnectionError as error:
                raise AssertionError(f"the connection broke: {error}") from error
        return self._end(bytes(raw), count)

    @staticmethod
    def _is_refusal(raw: bytearray) -> bool:
        return raw.startswith(b"HTTP/1.1 ") and not raw.startswith(b"HTTP/1.1 200") and raw.endswith(b"}")

    def _end(self, raw: bytes, count: Callable[[str, bytes], None]) -> str:
        told: list[str] = [code.decode() for code in _CODE.findall(raw)]
        if not raw.startswith(b"HTTP/1.1 200"):
            assert len(told) == 1, f"a refusal without a code: {raw[:200]!r}"
            return told[0]
        text = b"".join(_TEXT.findall(raw))
        count(self._prompt, text)
        assert raw.count(b"data: [DONE]\n\n") == 1, "not one [DONE]"
        if told:
            assert len(told) == 1, "two errors"
            assert b'"finish_reason":"' not in raw, "an end and an error"
            return told[0]
        assert len(text) == self._tokens, f"{len(text)} tokens"
        return "finished"
