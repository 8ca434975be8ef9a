# ruff: noqa: PYI021 - this file is where the native module is documented
"""The shared-memory core in C++ (`native/`): both sides of an arena, for one thread each.

Every call but `await_life_line` keeps the GIL and is short: microseconds, and for a drain some more for each socket
that it sends to. After `close()` every other call raises TransportError.
"""

from collections.abc import Iterable
from mmap import mmap
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rbee.transport.arena import Arena
from rbee.transport.frame_template import FrameTemplate

def arena_size(num_rings: int, ring_capacity: int) -> int:
    """Bytes of an arena with these sizes; ValueError for sizes that no arena can have."""

def format_arena(buffer: memoryview, *, num_rings: int, ring_capacity: int, epoch: int, first_index: int) -> None:
    """Format zeroed memory, which no other process has mapped yet, as an empty arena."""

def inspect_arena(buffer: memoryview) -> tuple[int, int, int]:
    """Return (num_rings, ring_capacity, epoch) of the arena in this memory; TransportError if it is damaged."""

def observe(buffer: memoryview) -> tuple[int, int, dict[str, int], dict[str, list[int]]]:
    """Return (epoch, server's pid, counters, histograms) of an arena, whose mapping may be read-only.

    Counted since this epoch's start: a value for each of COUNTERS, and for each of HISTOGRAMS the number of values
    per bucket (see `histogram_bounds`).

    Raises:
        TransportError: the memory is no valid arena of this version.
    """

COUNTERS: Final[tuple[tuple[str, str, str], ...]]
"""(name, kind, help) of each counter, from `native/include/rbee/counters.h`, which defines the kinds."""

HISTOGRAMS: Final[tuple[tuple[str, str, str], ...]]
"""(name, unit, help) of each histogram; the unit is `ns` or `tokens`."""

ORDINARY_FINISHES: Final[dict[str, int]]
"""The names and codes of the finish reasons that a `FrameTemplate` has last frames for."""

def histogram_bounds() -> list[int]:
    """Where each bucket of a histogram starts, in its unit; the last one has no end."""

def format_life_line(memory: mmap | memoryview) -> None:
    """Make zeroed memory, which no other process has mapped yet, a life line that no thread holds."""

def hold_life_line(memory: mmap | memoryview) -> None:
    """Hold it until the calling thread ends; TransportError if another one does."""

def await_life_line(memory: mmap | memoryview) -> None:
    """Return when the thread that holds it has ended. Without the GIL."""

class Progress:
    """Counts chunks of work, so that a long step is no hang. For one thread at a time."""

    def __init__(self) -> None:
        """Count in memory of its own. A `Producer`'s counts in its arena until the producer is closed."""

    def advance(self) -> None:
        """Count a chunk: a layer of a forward pass, a loaded tensor."""

    @property
    def chunks(self) -> int:
        """Chunks counted so far."""

class Producer:
    """The engine's side of an arena."""

    def __init__(self, arena: Arena, doorbell_fd: int) -> None:
        """Check the arena's header and the doorbell; TransportError if either cannot be used.

        The arena cannot be closed before this object. The descriptor stays the caller's.
        """

    def open(self, ring: int, generation: int) -> None:
        """Open a ring for a submission: from now on `commit` may write to it.

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

        All arguments are checked before anything changes: a step is published whole or not at all. A step without
        tokens and finishes publishes nothing.

        Args:
            rings: [n] the ring of each sampled token. A ring may repeat; its tokens keep their order.
            tokens: [n] token ids below 2^31; with that bit set, side records, which the counter `tokens` leaves out.
            logprobs: [n] natural logarithms.
            finished: [m] rings that end with this step, after their tokens. They are closed then. None: no ring ends.
            finishes: [m] their finishes: a `FinishReason` (not 0) in the low byte, any number above it.

        Returns:
            CLOCK_MONOTONIC in ns, comparable with `time.monotonic_ns()` in the server.

        Raises:
            TypeError: an array of another type, not one-dimensional or not contiguous.
            ValueError: arrays of different lengths, no such ring, a ring that ends twice, a finish whose reason is 0.
            TransportError: a ring that is not open or has too little space, a corrupt arena; or, after the step has
                been published, a doorbell that cannot be written.
        """

    def note_start(self, ring: int) -> None:
        """Write that the request of a ring begins to run now, for `Consumer.times`; TransportError if not open."""

    def free_space(self, ring: int) -> int:
        """Records that fit into the ring now; at least as many fit until the next commit."""

    def take_cancelled(self) -> list[int]:
        """Return open rings whose request the server has cancelled, each once."""

    def arm_wait(self) -> None:
        """Announce sleep: from now on a cancel or freed space makes the server send Wake, once.

        Call `take_cancelled` and `free_space` once more after it and before sleeping. Announces nothing without an open
        ring. The next `commit` withdraws the announcement.
        """

    def beat(self, state: int) -> None:
        """Write the heartbeat (now) and the engine's state, an `EngineState`."""

    @property
    def progress(self) -> Progress:
        """The runner advances it while it loads and within a step. Always the same object."""

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
        """Set the gauges and count the duration of a step; `step_ns` 0: there was no step."""

    def note_admitted(self, queue_ns: int) -> None:
        """Count the time from a request's receipt to its admission."""

    def note_first_token(self, prefill_ns: int) -> None:
        """Count the time from a sequence's admission to its first token."""

    def note_ended(
        self, *, prompt_tokens: int, generation_tokens: int, inference_ns: int, decode_ns: int | None
    ) -> None:
        """Count the sizes and times of an admitted sequence that ends; `decode_ns` is None without a token."""

    def close(self) -> None:
        """Release the arena. A second call does nothing."""

class Drained(NamedTuple):
    """What one drain found, as flat lists."""

    rings: list[int]
    """The rings that had something, each once."""
    ends: list[int]
    """`ends[i]` is where the tokens of `rings[i]` end in `tokens`; they start at `ends[i - 1]`, the first at 0."""
    finishes: list[int]
    """The finish of each ring, as passed to `commit`, or 0. With a finish the ring is free and its generation over."""
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
    bytes in another way, then `resume` it, unless it is also in `ended`."""
    broken: list[int]
    """Attached rings whose socket is broken: cancel them."""
    ended: list[tuple[int, int]]
    """Attached rings that have finished, each with its finish. All their tokens have been sent, or are in `blocked`."""

class EmojiHold:
    """Withholds an emoji at the end of a text until the next character shows that it is whole."""

    def __init__(self) -> None: ...
    def push(self, text: str) -> str:
        """What was held and `text`, as far as it cannot change any more."""

    def flush(self) -> str:
        """What is held: no further character comes."""

class Vocabulary:
    """What each token id stands for. Immutable; shared by all streams."""

    def __init__(self, pieces: Iterable[bytes | str]) -> None:
        """The piece of token 0, 1, 2, ...

        Bytes may be any part of characters; a string is whole characters, and ends a character that is incomplete.
        """

    def __len__(self) -> int: ...
    def piece(self, token_id: int) -> bytes | str:
        """The token's piece; no bytes for an id that the vocabulary does not have."""

class Slot:
    """The variable parts of a `FrameTemplate`, one control byte each. JSON text has none of these bytes."""

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
    """The commit time of the newest token so far, CLOCK_MONOTONIC in ns."""
    TOKEN_BEGIN: Final[bytes]
    """The part up to TOKEN_END is written only if the batch that produced the frame has a token."""
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
        keep_text: bool = False,
    ) -> None:
        """Create the outlet of a stream that has not begun.

        Args:
            fd: the socket. Detach the outlet before closing it.
            vocabulary: of the model.
            template: its frames.
            strip: the vocabulary writes a space before the first word, which is not shown.
            prompt_tokens: for TOTAL_TOKENS.
            stop_token_ids: tokens that are counted but not shown.
            received_ns: when the request was received, CLOCK_MONOTONIC; 0 omits its first token from the histogram.
            keep_text: `text` has all that is shown.

        Raises:
            ValueError: the template has a control byte that is no slot, an unpaired TOKEN_BEGIN or TOKEN_END, or a slot
                in a frame that has no value for it.
        """

    @property
    def num_tokens(self) -> int:
        """Tokens rendered so far, stop tokens included."""

    @property
    def num_frames(self) -> int:
        """Frames with text rendered so far."""

    @property
    def has_end(self) -> bool:
        """Whether the template has an `end`; without one the caller writes what follows an ordinary last frame."""

    @property
    def text(self) -> bytes:
        """The text of all frames so far, as a JSON string with its quotes; an empty one unless it is kept."""

    @property
    def written_ns(self) -> int:
        """When the last frames went to the socket, CLOCK_MONOTONIC; 0 before the first ones."""

class TokenGaps:
    """The gaps between the tokens of a request, in ns, 8 bytes each. Several rings may share one."""

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def quantile(self, q: float) -> int:
        """The smallest gap that at least the share `q` of all gaps are not above (nearest rank); 0 without a gap."""

class Consumer:
    """The server's side of an arena."""

    def __init__(self, arena: Arena, doorbell_fd: int) -> None:
        """Check the arena's header and the doorbell; TransportError if either cannot be used.

        The arena cannot be closed before this object. The descriptor stays the caller's. The doorbell is armed from
        the start: the engine's first step makes it readable.
        """

    def assign(
        self, received_ns: int = 0, queued_tokens: int = 0, gaps: TokenGaps | None = None
    ) -> tuple[int, int] | None:
        """Take a free ring; return it and its new generation, or None when all rings are taken.

        Only a `drain` that returns its finish frees the ring.

        Args:
            received_ns: when its request was received, CLOCK_MONOTONIC: `note_delivered` then times its first token and
                its gaps. 0: they are not timed.
            queued_tokens: what the ring adds to the property of this name until it has begun.
            gaps: gets what is between the commits of its tokens.
        """

    def has_begun(self, ring: int) -> bool:
        """False until the engine publishes anything for an assigned ring, or it is cancelled.

        A drain notices it, of paused rings too. After the engine's death: the drains after `expect_all`.
        """

    def times(self, ring: int) -> tuple[int, int, int, int]:
        """Return (start, first, last, tokens) of the sequence that was assigned this ring last, also after its end.

        When the engine began to run it, and when it committed the first and the last output token that a drain has
        found, CLOCK_MONOTONIC in ns, 0 if not yet; and how many these are.

        Raises:
            IndexError: no such ring.
        """

    def cancel(self, ring: int) -> bool:
        """Make the engine end the ring's request before its next step; True: the engine sleeps, send Wake."""

    def pause(self, ring: int) -> None:
        """Make `drain` leave this ring's records and finish where they are."""

    def resume(self, ring: int) -> bool:
        """End `pause`; True if the ring has something to drain already, for which no doorbell will ring."""

    def expect_all(self) -> None:
        """After the engine's death: make the next drain read every assigned ring, paused or not.

        The engine may have died between publishing a ring's records and setting its ready bit. The contents of an
        attached, paused ring come back in `blocked`, because bytes in front of them still wait for the socket.
        """

    def attach(self, ring: int, outlet: Outlet) -> None:
        """Make `drain` write this ring's tokens to a socket instead of returning them, until the ring ends.

        Raises:
            ValueError: the ring is not assigned.
        """

    def detach(self, ring: int) -> None:
        """End `attach`: tokens of this ring are returned again. Does nothing if it was not attached."""

    def drain(self, max_records: int = 4096, *, polling: bool = False) -> Drained:
        """Take what the engine published, at most `max_records` tokens, then arm the doorbell if nothing is left.

        Tokens of attached rings are rendered and sent, one system call per ring; the others are returned. Reads the
        doorbell's descriptor itself. Never blocks.

        Args:
            max_records: at least 1.
            polling: leave the doorbell and its descriptor unchanged; the caller will drain again by itself.

        Raises:
            ValueError: `max_records` is 0.
            TransportError: a corrupt ring. The arena is unusable; replace the engine.
        """

    def note_delivered(self) -> None:
        """Count delivery latencies, first tokens and gaps of what the last drain returned: it has been written now."""

    def poll(self, patience_ns: int) -> bool:
        """Spin for at most `patience_ns` until there is a reason to drain; return whether there is.

        A reason is a step since the last drain, or what that drain left: over its budget, or in a ring resumed since.
        """

    def silence(self) -> None:
        """Empty the doorbell's descriptor, for a caller that polls."""

    def find_stale(self) -> bool:
        """For a slow timer: True, and counted, if a wakeup was lost since the last call (never observed so far).

        True also for an engine that was stopped in the middle of a commit. Call `drain` then.
        """

    @property
    def in_use(self) -> int:
        """Rings that are assigned and have not finished."""

    @property
    def queued_tokens(self) -> int:
        """The sum of what was given to `assign` for the rings that have not begun."""

    @property
    def engine_signs(self) -> tuple[int, int]:
        """The engine's heartbeat, CLOCK_MONOTONIC in ns, and its progress: words that an engine at work changes."""

    @property
    def sequences_waiting(self) -> int:
        """The counter of that name."""

    def beat(self, state: int) -> None:
        """Write the server's heartbeat (now) and its `ServerState`."""

    def counters(self) -> dict[str, int]:
        """The value of each of COUNTERS, of both processes, since this epoch's start."""

    def note_loop_lag(self, ns: int) -> None:
        """Count how late a timer of the event loop was."""

    def note_collection(self, ns: int) -> None:
        """Count a garbage collection that took `ns`."""

    def close(self) -> None:
        """Release the arena. A second call does nothing."""
