"""The shared-memory segment of one engine epoch: its creation, its attachment and its end.

Owns the segment's name, file and mapping (docs/transport.md, "Memory map"). Does not know what it contains.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Self

from rbee.errors import TransportError
from rbee.transport import _native

SHM_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory (shm_overview(7)), not a temp folder


def arena_size(num_rings: int, ring_capacity: int) -> int:
    """Bytes of an arena with so many rings of so many records."""
    size: int = _native.arena_size(num_rings, ring_capacity)
    return size


def create_doorbell() -> int:
    """Return a new eventfd, non-blocking and not inherited unless passed with pass_fds."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class Arena:
    """One mapped segment, made by `create` (server) or `attach` (engine)."""

    def __init__(
        self, name: str, mapping: SharedMemory | mmap.mmap, descriptor: int = -1, *, linked: bool = False
    ) -> None:
        self.name = name  # below /dev/shm
        self.descriptor = descriptor  # of the segment, until `close`; -1 in an attached arena
        self._mapping: SharedMemory | mmap.mmap = mapping
        self._linked = linked
        buffer = mapping.buf if isinstance(mapping, SharedMemory) else memoryview(mapping)
        assert buffer is not None  # it is, after close()
        self.buffer = buffer  # the mapped memory; only the native core reads or writes it
        self.size = self.buffer.nbytes  # bytes
        self.num_rings, self.ring_capacity, self.epoch = _native.inspect_arena(self.buffer)

    @classmethod
    def create(
        cls, *, num_rings: int, ring_capacity: int, epoch: int, first_index: int = 0, named: bool = True
    ) -> Self:
        """Create an empty arena and reserve its memory: a full /dev/shm raises here instead of crashing later.

        `num_rings` (requests at once) is a multiple of 64, `ring_capacity` (records per ring) a power of two, else
        ValueError. The rings' free-running indices start at `first_index`; tests set it close to their wrap-around.
        An arena that is not `named` has lost its name before anything else is done: it is attached by `descriptor`.
        TransportError if the machine has no room.
        """
        size = arena_size(num_rings, ring_capacity)
        name = f"rbee-{os.getpid()}-{secrets.token_hex(4)}"
        resource_tracker.ensure_running()  # so that no process is started between the next two steps
        try:
            memory = SharedMemory(name, create=True, size=size)
        except OSError as error:
            raise _no_room(size, error) from error
        descriptor = -1
        try:
            try:
                descriptor = os.open(SHM_FOLDER / name, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise _no_room(size, error) from error
            finally:
                if not named:
                    memory.unlink()
            _reserve(descriptor, size)
            assert memory.buf is not None  # it is, after close()
            _native.format_arena(
                memory.buf, num_rings=num_rings, ring_capacity=ring_capacity, epoch=epoch, first_index=first_index
            )
            return cls(name, memory, descriptor, linked=named)
        except BaseException:
            if named:
                memory.unlink()
            memory.close()
            if descriptor >= 0:
                os.close(descriptor)
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
            return cls(name, _map(file, name))
        finally:
            os.close(file)

    @classmethod
    def attach_descriptor(cls, descriptor: int) -> Self:
        """The same by a descriptor of the arena, which stays open."""
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.removesuffix(" (deleted)")  # noqa: PTH115 - no path
        return cls(name, _map(descriptor, name))

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
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _map(file: int, name: str) -> mmap.mmap:
    size = os.fstat(file).st_size
    if size == 0:
        raise TransportError(f"The shared-memory segment {name!r} is empty; it is not an rbee arena.")
    return mmap.mmap(file, size)


def _reserve(file: int, size: int) -> None:
    """Reserve all pages of the file, because ftruncate() only sets its length."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        raise _no_room(size, error) from error


def _no_room(size: int, error: OSError) -> TransportError:
    mib = size / 2**20
    if error.errno == errno.ENOSPC:
        remedy = "Make it larger (containers: --shm-size), or lower --max-requests or --ring-capacity"
    else:
        remedy = f"rbee needs a writable {SHM_FOLDER} (a tmpfs)"
    return TransportError(f"No {mib:.1f} MiB of shared memory in {SHM_FOLDER}: {error.strerror}. {remedy}.")
