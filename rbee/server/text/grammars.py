"""What is wrong with a grammar, found out where it delays nobody: in a process of its own, within limits.

Owns that process, how many compilations there are at once, and what is remembered of earlier ones. Does not know where
a grammar comes from. `rbee.server.text.turns` says whose is compiled next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from rbee.child import GROUP_SIGNALS
from rbee.server.errors import Refusal, RefusalKind, deadline_passed, invalid
from rbee.server.text.turns import NoPlaceError, Turn, Turns
from rbee.transport.control import FrameDecoder, frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

_log = logging.getLogger(__name__)

LARGEST = 256 * 1024  # bytes of a source
_AT_ONCE = 2  # compilations
MOST_WAITING_OF_ONE = 64  # of one API key, or address
MOST_WAITING = 512  # each keeps its source
_REMEMBERED = 1024  # grammars, by their digests; also those that are wrong

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, str, bool]).decode


class Found(NamedTuple):
    """What is wrong with a source, a part of a sentence; "" for nothing."""

    problem: str
    is_certain: bool = True  # it will be the same another time


class Suspect(NamedTuple):
    """A part of a grammar that may be what is wrong with it."""

    param: str  # where it stands in the request
    called: str = ""  # continues that in a sentence


class Suspects(NamedTuple):
    """Parts of a grammar that are alike, and grammars themselves."""

    suspects: Sequence[Suspect]
    source: Callable[[int, int], str]  # of those from an index to another one


class Compiler(Protocol):
    """What compiles. With `gone` it has ended."""

    gone: bool

    async def ask(self, source: str) -> Found: ...  # GoneError if it ends before

    def close(self) -> None: ...


class GoneError(Exception):
    """The process that compiles has ended, or was not started; another one will be."""


class _Compilation(NamedTuple):
    """One that is under way or waits for its turn."""

    task: asyncio.Task[Found]
    turn: Turn
    wanted: list[Callable[[], bool]]  # whether each of those that have asked still waits


class GrammarChecks:
    """Compiles grammars for the vocabulary of `model`, as `rbee.grammars.vocabulary.load` takes it.

    The process is started when it is first needed, and again if it has ended. `start` starts another compiler.
    """

    def __init__(self, model: str, start: Callable[[str], Awaitable[Compiler]] | None = None) -> None:
        self._model = model
        self._start = start or _Worker.start
        self._worker: Compiler | None = None
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._coming: dict[bytes, _Compilation] = {}
        self._num_closed = 0
        self._turns = Turns(_AT_ONCE, most_of_one=MOST_WAITING_OF_ONE, most=MOST_WAITING)
        self._starting = asyncio.Lock()

    async def check(
        self,
        source: str,
        param: str,
        parts: Sequence[Suspects] = (),
        *,
        deadline_ns: int = 0,
        wanted: Callable[[], bool] = lambda: True,
        holder: Hashable = None,
    ) -> None:
        """Return if an output can follow this source within the limits.

        Args:
            source: a grammar.
            param: the field that asks for it.
            parts: of it.
            deadline_ns: CLOCK_MONOTONIC, when nobody waits any more; 0 is never.
            wanted: False once nobody waits any more; what has not begun by then is left out, and then this returns.
            holder: who asks. The turns of all holders come in rotation.

        Raises:
            Refusal: an output cannot; it blames a part that is wrong by itself, else `param`. Or the deadline has
                passed, or too many wait, or it is not known now.
        """
        left = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9) if deadline_ns else None
        try:
            async with asyncio.timeout(left):
                problem, blamed = await self._problem(source, wanted, holder), Suspect(param)
                for alike in parts if problem else ():
                    found, suspect = await self._at_fault(alike, wanted, holder)
                    if found:
                        problem, blamed = found, suspect
                        break
        except TimeoutError:
            raise deadline_passed() from None
        except NoPlaceError as error:
            raise Refusal(
                RefusalKind.OVERLOADED,
                f"{param} would have to be compiled, and too many grammars wait for that ({MOST_WAITING_OF_ONE} of an "
                f"API key or address, {MOST_WAITING} in all). Wait for one of yours.",
                param=param,
                code="too_many_grammars",
                retry_after=max(1, error.num_ahead),  # each takes about a second at most
            ) from None
        except GoneError:
            raise Refusal(
                RefusalKind.UNAVAILABLE,
                f"The process that compiles {param} has ended; try again.",
                param=param,
                code="grammars_gone",
                retry_after=1,
            ) from None
        if problem:
            what = blamed.param + blamed.called
            message = f"{what} cannot be enforced: {problem}. Change or simplify it, or leave it out."
            raise invalid(blamed.param, message, code="invalid_grammar")

    async def _at_fault(self, parts: Suspects, wanted: Callable[[], bool], holder: Hashable) -> tuple[str, Suspect]:
        """The first of these that is wrong by itself, with what is wrong; "" if there is none.

        It is found by halves: of 512 tools ten grammars are compiled.
        """
        first, end = 0, len(parts.suspects)
        while end - first > 1:
            middle = (first + end) // 2
            if await self._problem(parts.source(first, middle), wanted, holder):
                end = middle
            else:
                first = middle
        return await self._problem(parts.source(first, end), wanted, holder), parts.suspects[first]

    async def _problem(self, source: str, wanted: Callable[[], bool], holder: Hashable) -> str:
        """A part of a sentence; "" if there is none, or if nobody wants to know."""
        content = source.encode(errors="surrogatepass")
        if len(content) > LARGEST:
            return f"it has {len(content)} bytes, and at most {LARGEST} are possible"
        digest = blake2b(content, digest_size=16).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        coming = self._coming.get(digest)
        turn = self._turns.ask(holder, coming and coming.turn)
        if coming is None:
            task = asyncio.create_task(self._compile(digest, source, turn, self._num_closed))
            task.add_done_callback(_note_error)
            coming = self._coming[digest] = _Compilation(task, turn, [])
        coming.wanted.append(wanted)
        try:
            found = await asyncio.shield(coming.task)  # others may wait for the same
        finally:
            coming.wanted.remove(wanted)
        return found.problem

    async def _compile(self, digest: bytes, source: str, turn: Turn, num_closed: int) -> Found:
        try:
            await turn.has_come
            if not any(wanted() for wanted in self._coming[digest].wanted):
                return Found("", is_certain=False)
            found = await (await self._running_worker(num_closed)).ask(source)
        finally:
            self._turns.end(turn)
            del self._coming[digest]
        if found.is_certain:
            self._known[digest] = found.problem
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    async def _running_worker(self, num_closed: int) -> Compiler:
        """The process; GoneError if it cannot be started, or has been closed more often than `num_closed` times."""
        async with self._starting:
            if self._num_closed == num_closed and (self._worker is None or self._worker.gone):
                try:
                    worker = await self._start(self._model)
                except OSError as error:
                    _log.error("the process that compiles grammars cannot be started: %s", error.strerror)
                    raise GoneError from error
                if self._num_closed == num_closed:
                    self._worker = worker
                else:
                    worker.close()
            if self._num_closed != num_closed or self._worker is None:
                raise GoneError
            return self._worker

    def close(self) -> None:
        """End the process; who waits for it is refused."""
        self._num_closed += 1
        if self._worker is not None:
            self._worker.close()
            self._worker = None


def _note_error(task: asyncio.Task[Found]) -> None:
    """Its error is that of those who wait; all may have left."""
    if not task.cancelled():
        task.exception()


class _Worker(asyncio.Protocol):
    """The process, and what it is asked."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.gone = False
        self._process = process
        self._decoder = FrameDecoder()
        self._asked: dict[int, asyncio.Future[Found]] = {}
        self._number = 0

    @classmethod
    async def start(cls, model: str) -> _Worker:
        """Start it; what it is asked from now on waits until it has loaded the vocabulary."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _spawn(theirs.fileno(), model)
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        _, worker = await asyncio.get_running_loop().create_unix_connection(lambda: cls(process), sock=ours)
        return worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment] # a socket's can write

    def data_received(self, data: bytes) -> None:
        for payload in self._decoder.feed(data):
            number, problem, is_certain = _decode(payload)
            self._asked.pop(number).set_result(Found(problem, is_certain))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._end()

    async def ask(self, source: str) -> Found:
        if self.gone:
            raise GoneError
        self._number += 1
        answer: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
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
            answer.set_exception(GoneError())
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
