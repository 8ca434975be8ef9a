"""The shared-memory segment: what is refused, and that nothing is ever left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.errors import TransportError
from rbee.transport import Arena, Consumer, Producer, create_doorbell

SHM = Path("/dev/shm")


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A Python process of its own. Returns when it and its resource tracker, which shares stderr, are gone."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args], capture_output=True, text=True, timeout=60, check=False
    )


def test_attached_arena_equals_created_one():
    """Sizes and epoch travel through the header, whatever the creator's process knows."""
    created = Arena.create(num_rings=128, ring_capacity=16, epoch=9)
    attached = Arena.attach(created.name)
    assert (attached.num_rings, attached.ring_capacity, attached.epoch) == (128, 16, 9)
    assert attached.size == created.size > 128 * 16 * 16
    created.unlink()
    created.close()
    attached.close()


def test_unlink_leaves_no_name_and_may_be_repeated():
    """After unlink the name is gone while both mappings still work."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    assert (SHM / arena.name).exists()
    arena.unlink()
    arena.unlink()
    assert not (SHM / arena.name).exists()
    assert bytes(arena.buffer[:8]) == b"rbee_shm"
    arena.close()
    arena.close()


def test_memory_is_reserved_at_creation():
    """All pages belong to the segment before anybody writes to them, so that a full /dev/shm cannot kill us later."""
    arena = Arena.create(num_rings=64, ring_capacity=1024, epoch=1)
    blocks = os.stat(SHM / arena.name).st_blocks  # noqa: PTH116 - for its 512-byte blocks
    arena.unlink()
    arena.close()
    assert blocks * 512 >= arena.size


def test_segment_is_private_to_the_user():
    """Other users can neither read tokens nor write into rings."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    mode = (SHM / arena.name).stat().st_mode & 0o777
    arena.unlink()
    arena.close()
    assert mode == 0o600


def test_arena_larger_than_the_machine_is_a_sentence():
    """No room is an error that says how much was wanted and what to do, and leaves no name."""
    with pytest.raises(TransportError, match=r"No 10485\d\d\.\d MiB of shared memory.*--max-requests"):
        Arena.create(num_rings=65536, ring_capacity=2**20, epoch=1)
    assert list(SHM.glob(f"rbee-{os.getpid()}-*")) == []


@pytest.mark.parametrize(("num_rings", "ring_capacity"), [(0, 8), (65, 8), (64, 0), (64, 1), (64, 12), (64, 2**21)])
def test_impossible_sizes_are_refused(num_rings, ring_capacity):
    """Sizes that the bitmap or the index mask cannot work with never get as far as shared memory."""
    with pytest.raises(ValueError, match="must be"):
        Arena.create(num_rings=num_rings, ring_capacity=ring_capacity, epoch=1)


@pytest.mark.parametrize("name", ["", "rbee-no-such-segment", "."])
def test_attach_refuses_what_is_no_segment(name):
    """A name that nothing sound is behind is a sentence."""
    with pytest.raises(TransportError, match="segment"):
        Arena.attach(name)


def test_attach_refuses_paths():
    """A name with folders in it is refused even where it would lead to an arena."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    with pytest.raises(TransportError, match="cannot be the name"):
        Arena.attach(f"../shm/{arena.name}")
    arena.unlink()
    arena.close()


@pytest.fixture
def segment():
    """A file among the shared-memory segments whose content a test chooses."""
    path = SHM / f"rbee-test-{os.getpid()}"
    yield path
    path.unlink(missing_ok=True)


def sound_content() -> bytes:
    """The bytes of a fresh arena with 64 rings of two records."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    arena.unlink()
    content = bytes(arena.buffer)
    arena.close()
    return content


SOUND = sound_content()


@given(
    start=st.one_of(st.just(SOUND[:128]), st.binary(max_size=128)),
    changes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), max_size=4),
    length=st.one_of(st.just(len(SOUND)), st.integers(0, 2 * len(SOUND))),
)
@settings(max_examples=300, deadline=None)
def test_attach_survives_any_header(start, changes, length):
    """Whatever a segment contains, attach() raises TransportError or finds exactly the sizes that were created."""
    content = bytearray((start + SOUND[len(start) :] + bytes(len(SOUND)))[:length])
    for at, byte in changes:
        if at < length:
            content[at] = byte
    path = SHM / f"rbee-fuzz-{os.getpid()}"
    path.write_bytes(content)
    try:
        arena = Arena.attach(path.name)
    except TransportError:
        # The epoch, the server's pid and the reserved word may be anything; the rest must not.
        assert length < len(SOUND) or content[:16] + content[32:112] != SOUND[:16] + SOUND[32:112]
    else:
        assert (arena.num_rings, arena.ring_capacity) == (64, 2)
        assert length >= len(SOUND)
        arena.close()
    finally:
        path.unlink()


def test_both_sides_refuse_an_arena_that_was_damaged_after_attaching(segment):
    """Producer and Consumer check the header themselves, not only attach()."""
    segment.write_bytes(SOUND)
    arena = Arena.attach(segment.name)
    arena.buffer[0] ^= 1
    doorbell = create_doorbell()
    for side in (Producer, Consumer):
        with pytest.raises(TransportError, match="not an rbee arena"):
            side(arena, doorbell)
    os.close(doorbell)
    arena.close()


def test_arena_cannot_be_unmapped_under_its_sides():
    """Closing in the wrong order is an error, not a crash, and does no harm."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    arena.unlink()
    doorbell = create_doorbell()
    consumer = Consumer(arena, doorbell)
    with pytest.raises(TransportError, match="close its Producer and Consumer first"):
        arena.close()
    assert consumer.assign() == (0, 1)
    consumer.close()
    arena.close()
    os.close(doorbell)


def test_closed_side_answers_with_an_error():
    """A call after close() cannot touch memory that may be gone."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    arena.unlink()
    doorbell = create_doorbell()
    consumer, producer = Consumer(arena, doorbell), Producer(arena, doorbell)
    for side in (consumer, producer):
        side.close()
        side.close()
    with pytest.raises(TransportError, match="has been closed"):
        consumer.drain()
    with pytest.raises(TransportError, match="has been closed"):
        producer.take_cancelled()
    arena.close()
    os.close(doorbell)


def test_doorbell_must_be_open_and_non_blocking():
    """Neither side accepts a descriptor that could block it or that is not there."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    arena.unlink()
    blocking = os.eventfd(0, os.EFD_CLOEXEC)
    for side in (Producer, Consumer):
        with pytest.raises(TransportError, match="is blocking"):
            side(arena, blocking)
        with pytest.raises(TransportError, match="cannot be used"):
            side(arena, -1)
    os.close(blocking)
    arena.close()


def test_attaching_process_takes_nothing_away():
    """The end of a process that attached neither removes the segment nor says a word about it."""
    arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
    child = run("import sys; from rbee.transport import Arena; Arena.attach(sys.argv[1])", arena.name)
    assert (child.returncode, child.stderr) == (0, "")
    assert (SHM / arena.name).exists()
    arena.unlink()
    arena.close()


CREATE = """
import os, signal, sys
from rbee.transport import Arena, Consumer, create_doorbell
arena = Arena.create(num_rings=64, ring_capacity=2, epoch=1)
consumer = Consumer(arena, create_doorbell())
print(arena.name, flush=True)
"""


def test_creator_that_forgets_to_close_leaves_nothing_and_no_warning():
    """Once unlinked, the resource tracker has nothing to complain about, in whatever order objects are collected."""
    child = run(CREATE + "arena.unlink()")
    assert (child.returncode, child.stderr) == (0, "")
    assert not (SHM / child.stdout.strip()).exists()


def test_creator_killed_before_unlink_leaves_nothing():
    """SIGKILL between create and unlink: the resource tracker removes the name."""
    child = run(CREATE + "os.kill(os.getpid(), signal.SIGKILL)")
    assert child.returncode == -signal.SIGKILL
    assert child.stdout.startswith("rbee-")
    assert not (SHM / child.stdout.strip()).exists()
