"""The shared-memory segment of one engine epoch: its creation, its attachment and its end.

Owns the segment's name, file and mapping (docs/transport.md, "Memory map"). Does not know what it contains.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Self

from rbee.errors import TransportError
from rbee.transport import _native

SHM_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory (shm_overview(7)), not a temp folder


def create_doorbell() -> int:
    """Return a new eventfd, non-blocking and not inherited unless passed with pass_fds."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class Arena:
    """One mapped segment, made by `create` (server) or `attach` (engine)."""

    def __init__(self, name: str, mapping: SharedMemory | mmap.mmap) -> None:
        self.name = name  # below /dev/shm
        self._mapping: SharedMemory | mmap.mmap = mapping
        self._linked = isinstance(mapping, SharedMemory)
        buffer = mapping.buf if isinstance(mapping, SharedMemory) else memoryview(mapping)
        assert buffer is not None  # it is, after close()
        self.buffer = buffer  # the mapped memory; only the native core reads or writes it
        self.size = self.buffer.nbytes  # bytes
        self.num_rings, self.ring_capacity, self.epoch = _native.inspect_arena(self.buffer)

    @classmethod
    def create(cls, *, num_rings: int, ring_capacity: int, epoch: int, first_index: int = 0) -> Self:
        """Create an empty arena and reserve its memory: a full /dev/shm raises here instead of crashing later.

        `num_rings` (requests at once) is a multiple of 64, `ring_capacity` (records per ring) a power of two, else
        ValueError. The rings' free-running indices start at `first_index`; tests set it close to their wrap-around.
        TransportError if the machine has no room.
        """
        size = _native.arena_size(num_rings, ring_capacity)
        name = f"rbee-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            memory = SharedMemory(name, create=True, size=size)
        except OSError as error:
            raise _no_room(size, error) from error
        try:
            _reserve(SHM_FOLDER / name, size)
            assert memory.buf is not None  # it is, after close()
            _native.format_arena(
                memory.buf, num_rings=num_rings, ring_capacity=ring_capacity, epoch=epoch, first_index=first_index
            )
            return cls(name, memory)
        except BaseException:
            memory.unlink()
            memory.close()
            raise

    @classmethod
    def attach(cls, name: str) -> Self:
        """Map an arena that another process created; TransportError if there is none or it is damaged."""
        if not name or "/" in name:
            raise TransportError(f"{name!r} cannot be the name of a shared-memory segment.")
        try:
            file = os.open(SHM_FOLDER / name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise TransportError(
                f"The shared-memory segment {name!r} cannot be opened: {error.strerror}. "
                "The server that created it may be gone; start it again."
            ) from error
        try:
            size = os.fstat(file).st_size
            if size == 0:
                raise TransportError(f"The shared-memory segment {name!r} is empty; it is not an rbee arena.")
            mapping = mmap.mmap(file, size)
        finally:
            os.close(file)
        return cls(name, mapping)

    def unlink(self) -> None:
        """Remove the segment's name; the mappings stay. Does nothing in an attached arena or when called again."""
        if self._linked and isinstance(self._mapping, SharedMemory):
            self._linked = False
            self._mapping.unlink()

    def close(self) -> None:
        """Unmap the segment; TransportError while a Producer or Consumer of it is open."""
        try:
            self.buffer.release()
            self._mapping.close()
        except BufferError as error:
            raise TransportError("The arena is still in use: close its Producer and Consumer first.") from error


def _reserve(path: Path, size: int) -> None:
    """Reserve all pages of the file, because ftruncate() only sets its length."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise _no_room(size, error) from error
    finally:
        os.close(file)


def _no_room(size: int, error: OSError) -> TransportError:
    mib = size / 2**20
    if error.errno == errno.ENOSPC:
        remedy = "Make it larger (containers: --shm-size), or lower --max-requests or --ring-capacity"
    else:
        remedy = f"rbee needs a writable {SHM_FOLDER} (a tmpfs)"
    return TransportError(f"No {mib:.1f} MiB of shared memory in {SHM_FOLDER}: {error.strerror}. {remedy}.")
