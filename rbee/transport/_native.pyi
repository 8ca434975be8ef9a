# ruff: noqa: PYI021 - this file is where the native module is documented
"""The shared-memory core in C++ (`native/`): both sides of an arena, for one thread each.

Every call keeps the GIL and is short: microseconds, and for a drain some more for each socket that it sends to. After
`close()` every other call raises TransportError.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbee.transport.arena import Arena
from rbee.transport.frame_template import FrameTemplate

def arena_size(num_rings: int, ring_capacity: int) -> int:
    """Bytes of an arena with these sizes; ValueError if there can be no such arena."""

def format_arena(buffer: memoryview, *, num_rings: int, ring_capacity: int, epoch: int, first_index: int) -> None:
    """Make fresh zeroed memory that no other process has mapped yet an empty arena."""

def inspect_arena(buffer: memoryview) -> tuple[int, int, int]:
    """(num_rings, ring_capacity, epoch) of the arena in this memory; TransportError if it is not a sound one."""

def observe(buffer: memoryview) -> tuple[int, int, dict[str, int], dict[str, list[int]]]:
    """Read an arena's numbers, through a mapping that may be read-only.

    That is (epoch, server's pid, counters, histograms).

    Both since this epoch's start: the counters have a value for each of COUNTERS, the histograms the durations of each
    of HISTOGRAMS, counted by bucket (see `histogram_bounds`).

    Raises:
        TransportError: the memory is not a sound arena of this version.
    """

COUNTERS: Final[tuple[tuple[str, str, str], ...]]
"""(name, kind, help) of everything that is counted; `native/include/rbee/counters.h` is the list.

A `count` only grows, a `gauge` is how things stand, a `status` is a time, a state or a pid.
"""

HISTOGRAMS: Final[tuple[tuple[str, str], ...]]
"""(name, help) of everything whose duration is counted, in ns."""

ORDINARY_FINISHES: Final[dict[str, int]]
"""The names and codes of the finish reasons that a `FrameTemplate` has last frames for."""

def histogram_bounds() -> list[int]:
    """Where each bucket of a histogram starts, in ns; the last one has no end."""

class Progress:
    """Counts chunks of work, so that a long step is no hang. For one thread at a time."""

    def __init__(self) -> None:
        """Count in memory of its own. That of a `Producer` counts in its arena, until the producer is closed."""

    def advance(self) -> None:
        """One more chunk is done: a layer of a forward pass, a tensor that was loaded."""

    @property
    def chunks(self) -> int:
        """How many have been done."""

class Producer:
    """The engine's side of an arena."""

    def __init__(self, arena: Arena, doorbell_fd: int) -> None:
        """Check the arena's header and the doorbell; TransportError if either cannot be used.

        The arena cannot be closed before this object. The descriptor stays the caller's.
        """

    def open(self, ring: int, generation: int) -> None:
        """A submission for this ring was taken: from now on `commit` may write to it.

        Raises:
            ValueError: no such ring, or generation 0.
            TransportError: the ring is open already, or still holds records of an earlier generation.
        """

    def commit(
        self,
        rings: NDArray[np.uint32],
        tokens: NDArray[np.uint32],
        logprobs: NDArray[np.float32],
        finished: NDArray[np.uint32] | None = None,
        finishes: NDArray[np.uint32] | None = None,
    ) -> int:
        """Publish one step, ring the doorbell once, and return the commit time that all its records carry.

        Everything is checked before anything changes, so that a step is either published whole or not at all. A step
        without tokens and finishes publishes nothing.

        Args:
            rings: [n] the ring of each sampled token. A ring may repeat; its tokens keep their order.
            tokens: [n] token ids below 2^31; with that bit set, notes, which the counters leave out.
            logprobs: [n] natural logarithms.
            finished: [m] rings that end with this step, after their tokens. They are closed then. None: no ring ends.
            finishes: [m] how each of them ends: a `FinishReason` (not 0) in the low byte, any number above it.

        Returns:
            CLOCK_MONOTONIC in ns, comparable with `time.monotonic_ns()` in the server.

        Raises:
            TypeError: an array of another type, not one-dimensional or not contiguous.
            ValueError: arrays of different lengths, no such ring, a ring that ends twice, a finish whose reason is 0.
            TransportError: a ring that is not open or has too little space, a corrupt arena; or, after the step has
                been published, a doorbell that cannot be written.
        """

    def free_space(self, ring: int) -> int:
        """Records that fit into the ring now. They can only become more until the next commit."""

    def take_cancelled(self) -> list[int]:
        """Open rings whose request the server has cancelled, each reported once."""

    def arm_wait(self) -> None:
        """Announce sleep: from now on a cancel or freed space makes the server send Wake, once.

        Call `take_cancelled` and `free_space` once more after it and before sleeping. Without an open ring there is
        nothing to wait for, and the server is not asked for anything. The next `commit` withdraws the announcement.
        """

    def beat(self, state: int) -> None:
        """Write the heartbeat (now) and the engine's state, an `EngineState`."""

    @property
    def progress(self) -> Progress:
        """What the runner advances while it loads and within a step. Always the same object."""

    def report(
        self,
        step_ns: int,
        *,
        sequences_running: int,
        sequences_waiting: int,
        kv_blocks: int,
        kv_blocks_used: int,
        preemptions: int,
        prompt_tokens: int,
        cached_prompt_tokens: int,
    ) -> None:
        """How things stand after a step that took `step_ns` (0: there was none), for observers."""

    def close(self) -> None:
        """Release the arena. A second call does nothing."""

class Drained(NamedTuple):
    """What one drain found, as flat lists."""

    rings: list[int]
    """The rings that had something, each once."""
    ends: list[int]
    """`ends[i]` is where the tokens of `rings[i]` end in `tokens`; they start at `ends[i - 1]`, the first at 0."""
    finishes: list[int]
    """The finish of each ring as `commit` got it, or 0. With a finish the ring is free again, and this generation
    over."""
    tokens: list[int]
    commit_ns: list[int]
    """Per token: when the engine published it, CLOCK_MONOTONIC in ns."""
    logprobs: list[float]
    more: bool
    """True: call `drain` again soon, no doorbell will ring. False: the doorbell is armed (unless `polling`)."""
    needs_wake: bool
    """True: the engine sleeps until there is space, and there is now: send Wake."""
    blocked: list[tuple[int, bytes]]
    """Attached rings whose socket was full, each with the bytes that it did not take. The ring is paused now: write the
    bytes in another way and `resume` it when they are gone. A ring that is also in `ended` is not a ring any more."""
    broken: list[int]
    """Attached rings whose socket is of no use any more: cancel them."""
    ended: list[tuple[int, int]]
    """Attached rings that have finished, each with its finish. All their tokens have been sent, or are in `blocked`."""

class Vocabulary:
    """What each token id stands for, for outlets. Immutable; shared by all streams."""

    def __init__(self, pieces: list[bytes | str]) -> None:
        """The piece of token 0, 1, 2, ...

        Bytes may be any part of characters; a string is whole characters, and ends a character that is incomplete.
        """

    def __len__(self) -> int: ...

class Slot:
    """The bytes that stand for what varies in a `FrameTemplate`, one control byte each. JSON text has none of them."""

    TEXT: Final[bytes]
    """The frame's text, as a JSON string with its quotes."""
    INDEX: Final[bytes]
    """How many text frames came before this one."""
    NUM_TOKENS: Final[bytes]
    """Output tokens so far."""
    TOTAL_TOKENS: Final[bytes]
    """The prompt's and the output's tokens so far."""
    CACHED_TOKENS: Final[bytes]
    """Tokens of the prompt that were in the prefix cache."""
    COMMITTED_NS: Final[bytes]
    """When the engine committed the newest of the tokens so far, CLOCK_MONOTONIC in ns."""
    TOKEN_BEGIN: Final[bytes]
    """What stands from here to TOKEN_END is only written if the batch that produced the frame has a token."""
    TOKEN_END: Final[bytes]

class Outlet:
    """One response's socket, and what `drain` writes to it for the ring that it is attached to."""

    def __init__(
        self,
        fd: int,
        vocabulary: Vocabulary,
        template: FrameTemplate,
        *,
        strip: bool,
        prompt_tokens: int,
        stop_token_ids: list[int],
        received_ns: int = 0,
    ) -> None:
        """A stream that has not begun.

        Args:
            fd: the socket. It stays its owner's, who detaches the outlet before closing it.
            vocabulary: of the model.
            template: its frames.
            strip: the vocabulary writes a space before the first word, which is not shown.
            prompt_tokens: for TOTAL_TOKENS.
            stop_token_ids: tokens that are counted but not shown.
            received_ns: when the request had been received, CLOCK_MONOTONIC; 0 leaves its first token out of the
                histogram.

        Raises:
            ValueError: the template has a control byte that is no slot, a bracket without its other half, or a slot in
                a frame that has no value for it.
        """

    @property
    def num_tokens(self) -> int:
        """Tokens that have been rendered, stop tokens included."""

    @property
    def written_ns(self) -> int:
        """When the last frames went to the socket, CLOCK_MONOTONIC; 0 before the first ones."""

class Consumer:
    """The server's side of an arena."""

    def __init__(self, arena: Arena, doorbell_fd: int) -> None:
        """Check the arena's header and the doorbell; TransportError if either cannot be used.

        The arena cannot be closed before this object. The descriptor stays the caller's. The doorbell is armed from
        the start: the engine's first step makes it readable.
        """

    def assign(self) -> tuple[int, int] | None:
        """A free ring and its new generation, or None when all rings are taken.

        The ring comes back when `drain` delivers its finish, and in no other way.
        """

    def cancel(self, ring: int) -> bool:
        """Ask the engine to end the ring's request before its next step; True: the engine sleeps, send Wake."""

    def pause(self, ring: int) -> None:
        """Have `drain` leave this ring's records, and its finish, where they are."""

    def resume(self, ring: int) -> bool:
        """End `pause`; True if the ring has something to drain already, for which no doorbell will ring."""

    def expect_all(self) -> None:
        """After the engine's death: have the next drain look into every assigned ring, paused or not.

        The engine may have died between publishing a ring's records and saying that it did. What an attached ring that
        was paused holds comes back in `blocked`, because its socket still waits for something earlier.
        """

    def attach(self, ring: int, outlet: Outlet) -> None:
        """Have `drain` write this ring's tokens to a socket instead of returning them, until the ring ends.

        Raises:
            ValueError: the ring is not assigned.
        """

    def detach(self, ring: int) -> None:
        """End `attach`: tokens of this ring are returned again. Harmless if it was not attached."""

    def drain(self, max_records: int = 4096, *, polling: bool = False) -> Drained:
        """Take what the engine published, at most `max_records` tokens, then arm the doorbell if nothing is left.

        What belongs to attached rings is rendered and sent, one system call per ring; the rest is returned. Reads the
        doorbell's descriptor itself. Never blocks.

        Args:
            max_records: at least 1.
            polling: leave the doorbell and its descriptor alone; the caller will look again by itself.

        Raises:
            ValueError: `max_records` is 0.
            TransportError: a corrupt ring. The arena is of no use any more; replace the engine.
        """

    def note_delivered(self) -> None:
        """What the last drain returned has been written: count how long after its commit."""

    def poll(self, patience_ns: int) -> bool:
        """True if there is a reason to drain; looks for at most `patience_ns`, without sleeping.

        That is a step since the last drain, or what that drain left: over its budget, or in a ring resumed since.
        """

    def silence(self) -> None:
        """Make the doorbell's descriptor unreadable, for a caller that polls and need not be woken."""

    def find_stale(self) -> bool:
        """For a slow timer: True if a wakeup was lost since the last call (never seen; counted if it happens).

        An engine stopped in the middle of a commit looks the same. Call `drain` then.
        """

    @property
    def in_use(self) -> int:
        """Rings that are assigned and have not finished."""

    @property
    def sequences_waiting(self) -> int:
        """The counter of that name."""

    def beat(self, state: int) -> None:
        """Write the server's heartbeat (now) and its `ServerState`."""

    def counters(self) -> dict[str, int]:
        """The value of each of COUNTERS, of both processes, since this epoch's start."""

    def note_first_token(self, ns: int) -> None:
        """Count a request's time from its receipt to its first content written, for a stream that Python writes."""

    def note_gap(self, ns: int) -> None:
        """Count the time between two successive tokens written, for a stream that Python writes."""

    def note_loop_lag(self, ns: int) -> None:
        """Count how late a timer of the event loop was."""

    def note_collection(self, ns: int) -> None:
        """Count a garbage collection that took `ns`."""

    def close(self) -> None:
        """Release the arena. A second call does nothing."""
