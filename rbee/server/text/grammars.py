"""What is wrong with a grammar, found out where it delays nobody: in a process of its own, within limits.

Owns that process, how many compilations there are at once, and what is remembered of earlier ones. Does not know where
a grammar comes from.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from hashlib import blake2b

import msgspec

from rbee.child import GROUP_SIGNALS
from rbee.server.errors import Refusal, RefusalKind, invalid
from rbee.transport.control import FrameDecoder, frame

LARGEST = 256 * 1024  # bytes of a source
_AT_ONCE = 2  # compilations
_REMEMBERED = 1024  # grammars, by their digests; also those that are wrong

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, str]).decode


class _GoneError(Exception):
    """The process that compiles has ended; another one will be started."""


class GrammarChecks:
    """Compiles grammars for the vocabulary of `model`, as `rbee.grammars.vocabulary.load` takes it.

    The process is started when it is first needed, and again if it has ended.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._worker: _Worker | None = None
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._coming: dict[bytes, asyncio.Task[str]] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._starting = asyncio.Lock()

    async def check(self, source: str, param: str, part: tuple[str, str] | None = None) -> None:
        """Raise Refusal unless an output can follow this source within the limits.

        It blames `param`; or the field of a `part`, which is a source and its field, if that is wrong by itself.
        """
        try:
            problem = await self._problem(source)
            if problem and part is not None and (problem_of_part := await self._problem(part[0])):
                problem, param = problem_of_part, part[1]
        except _GoneError:
            raise Refusal(
                RefusalKind.UNAVAILABLE,
                f"The process that compiles {param} has ended; try again.",
                param=param,
                code="grammars_gone",
                retry_after=1,
            ) from None
        if problem:
            message = f"{param} cannot be enforced: {problem}. Change or simplify it, or leave it out."
            raise invalid(param, message, code="invalid_grammar")

    async def _problem(self, source: str) -> str:
        """A part of a sentence; "" if there is none."""
        content = source.encode(errors="surrogatepass")
        if len(content) > LARGEST:
            return f"it has {len(content)} bytes, and at most {LARGEST} are possible"
        digest = blake2b(content, digest_size=16).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        task = self._coming.get(digest)
        if task is None:
            task = self._coming[digest] = asyncio.create_task(self._compile(digest, source))
        return await asyncio.shield(task)  # others may wait for the same

    async def _compile(self, digest: bytes, source: str) -> str:
        try:
            async with self._turn:
                async with self._starting:
                    if self._worker is None or self._worker.gone:
                        self._worker = await _Worker.start(self._model)
                problem = await self._worker.ask(source)
        finally:
            del self._coming[digest]
        self._known[digest] = problem
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return problem

    def close(self) -> None:
        """End the process; who waits for it is refused."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Worker(asyncio.Protocol):
    """The process, and what it is asked."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.gone = False
        self._process = process
        self._decoder = FrameDecoder()
        self._asked: dict[int, asyncio.Future[str]] = {}
        self._number = 0

    @classmethod
    async def start(cls, model: str) -> _Worker:
        """Start it; what it is asked from now on waits until it has loaded the vocabulary."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn(theirs.fileno(), model)
        ours.setblocking(False)
        _, worker = await asyncio.get_running_loop().create_unix_connection(lambda: cls(process), sock=ours)
        return worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment] # a socket's can write

    def data_received(self, data: bytes) -> None:
        for payload in self._decoder.feed(data):
            number, problem = _decode(payload)
            self._asked.pop(number).set_result(problem)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._end()

    async def ask(self, source: str) -> str:
        if self.gone:
            raise _GoneError
        self._number += 1
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked[self._number] = answer
        self._transport.write(frame(_encode((self._number, source))))
        return await answer

    def close(self) -> None:
        self._transport.abort()
        self._end()

    def _end(self) -> None:
        if self.gone:
            return
        self.gone = True
        self._process.kill()
        self._process.wait()
        for answer in self._asked.values():
            answer.set_exception(_GoneError())
        self._asked.clear()


def _spawn(control: int, model: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rbee.grammars.worker", "--control-fd", str(control)]
    command += ["--parent-pid", str(os.getpid()), "--model", model]
    # The process has these blocked until it ignores them. Those that come to this one meanwhile wait.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        return subprocess.Popen(  # noqa: S603 - our own words only
            command, pass_fds=(control,), stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
