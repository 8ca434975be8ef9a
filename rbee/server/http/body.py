"""Reads a request's body, within bounds of size, time, kind and number, and has it worked on where that delays nobody.

Owns those bounds and places, and that nothing is done for a client that has left. Does not look inside the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from starlette.requests import ClientDisconnect

from rbee.server.errors import Refusal, RefusalKind
from rbee.server.http.writer import HAS_LEFT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

READ_TIMEOUT = 60.0  # seconds for the whole body
SMALL = 64 * 1024  # bytes of a body that need no room: the connection's buffers hold as much
LARGE_AT_ONCE = 2  # bodies of the largest size for which there is room
ROOM_PATIENCE = 10.0  # seconds that a large body waits for room
# Bytes of a body that is worked on in the event loop: under 2 ms, whatever it holds. The longest ones hold few strings
# and commas, which is to say few values, each of which takes longer than as many bytes of text.
_INLINE = 1024
_INLINE_IF_QUICK = 2560
_INLINE_IF_PLAIN = 5120
_PLAIN_QUOTES, _PLAIN_COMMAS = 128, 256
_SHOWN = 64  # characters of a media type that a refusal repeats

_More = TypeVarTuple("_More")
_Result = TypeVar("_Result")


class Bodies:
    """Reads bodies of at most `limit` bytes, and of `LARGE_AT_ONCE` times that in sum.

    Whoever sends a large body gets room for all of it when more than a small part has come, or waits, in order, with
    the rest unread: unfinished bodies cannot take the server's memory.

    Args:
        limit: bytes of a body.
        is_quick: whether the work on a body of a few KiB takes no longer than on a tiny one of another kind.
    """

    def __init__(self, limit: int, is_quick: Callable[[bytes], bool] = lambda _: False) -> None:
        self._limit = limit
        self._is_quick = is_quick
        self._room = LARGE_AT_ONCE * limit
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self._small_work = asyncio.Lock()  # until the next turn of the event loop
        self._large_work = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def reading(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a JSON request. Its room is free when the block is left.

        Raises:
            Refusal: another media type or encoding, a larger body, one that does not arrive within 60 s, or no room
                for it.
            ClientDisconnect: the client is gone.
        """
        _check_media_type(request)
        _check_encoding(request)
        declared = _declared(request)
        if declared is not None and declared > self._limit:
            raise _too_large(self._limit)
        taken = 0
        try:
            body = bytearray()
            async with _too_slow(), asyncio.timeout(READ_TIMEOUT):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > self._limit:
                        raise _too_large(self._limit)
                    if not message.get("more_body", False):
                        break
                    if len(body) > SMALL and not taken:
                        taken = await self._take(self._limit if declared is None else declared, request)
            check_client(request)
            whole = bytes(body)
            body.clear()  # else both are held as long as the block
            yield whole
        finally:
            if taken:
                self._room += taken
                self._freed.set()
                asyncio.get_running_loop().run_in_executor(None, _give_back_memory)

    async def work(
        self, request: Request, body: bytes, function: Callable[[bytes, *_More], _Result], *values: *_More
    ) -> _Result:
        """What `function(body, *values)` returns. Work for a client that has left before it begins is not begun.

        It is called in the event loop for a tiny body, and for a small one that is quick and, if it is longer, plain,
        one in each turn: however many come at once, tokens go out in between. The way to a thread and back would take
        longer than that work. It is called in a thread for others, large ones one after the other: so the others find a
        thread, and there is the memory of one.

        Raises:
            ClientDisconnect: the client is gone.
        """
        if self._is_short_work(body):
            has_to_wait = self._small_work.locked()
            await self._small_work.acquire()
            asyncio.get_running_loop().call_soon(self._small_work.release)
            if has_to_wait:
                check_client(request)
            return function(body, *values)

        def in_thread() -> _Result:
            check_client(request)
            return function(body, *values)

        if len(body) <= SMALL:
            return await asyncio.to_thread(in_thread)
        async with self._large_work:
            return await asyncio.to_thread(in_thread)

    def _is_short_work(self, body: bytes) -> bool:
        """Whether the way to a thread and back would take longer."""
        if len(body) <= _INLINE:
            return True
        if len(body) > _INLINE_IF_PLAIN or not self._is_quick(body):
            return False
        return len(body) <= _INLINE_IF_QUICK or (
            body.count(b'"') <= _PLAIN_QUOTES and body.count(b",") <= _PLAIN_COMMAS
        )

    async def _take(self, size: int, request: Request) -> int:
        """Wait for room for so many bytes, and take it."""
        try:
            async with asyncio.timeout(ROOM_PATIENCE), self._turn:
                while self._room < size:
                    self._freed.clear()
                    await self._freed.wait()
                    check_client(request)
                self._room -= size
        except TimeoutError:
            raise Refusal(
                RefusalKind.OVERLOADED,
                "The server is receiving as many large requests as it has room for; try again later.",
                code="bodies_full",
                retry_after=int(ROOM_PATIENCE),
            ) from None
        return size


@contextlib.asynccontextmanager
async def _too_slow() -> AsyncIterator[None]:
    try:
        yield
    except TimeoutError:
        raise Refusal(
            RefusalKind.BODY_TIMED_OUT,
            f"The request body did not arrive within {READ_TIMEOUT:.0f} s.",
            code="request_timeout",
        ) from None


def _give_back_memory() -> None:
    """Give what the C library keeps for later back to the system; other threads run meanwhile. Needs glibc.

    A tokenizer takes some 75 bytes for each of a text, in small pieces. glibc keeps them in the heap of the thread that
    has freed them, where other threads do not find them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def check_client(request: Request) -> None:
    """Raise ClientDisconnect if the client has left, which may not have been read yet. Costs a system call.

    After a burst most requests in the backlog are of clients that have given up.
    """
    has_left: Callable[[], bool] | None = request.scope.get("extensions", {}).get(HAS_LEFT)
    if has_left is not None and has_left():
        raise ClientDisconnect


def _check_media_type(request: Request) -> None:
    """A browser asks a server first before it sends that type for a page of another site."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        found = f"The Content-Type is {media_type[:_SHOWN]!r}" if media_type else "There is no Content-Type"
        raise Refusal(
            RefusalKind.UNSUPPORTED_MEDIA_TYPE, f"{found}; send application/json.", code="unsupported_media_type"
        )


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(
            RefusalKind.UNSUPPORTED_MEDIA_TYPE,
            f"The Content-Encoding is {encoding[:_SHOWN]!r}; send the body as it is, without one.",
            code="unsupported_content_encoding",
        )


def _declared(request: Request) -> int | None:
    """The Content-Length, if there is one."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _too_large(limit: int) -> Refusal:
    return Refusal(
        RefusalKind.BODY_TOO_LARGE,
        f"The request body is larger than {limit} bytes (--max-body-mib).",
        code="request_too_large",
    )
