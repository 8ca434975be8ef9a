"""The records of the control channel between the server process and the engine process, and their codec.

Owns their fields. Does not know how bytes travel (`rbee.transport.control`), nor tokens, which go through the rings.
"""

from __future__ import annotations

import array
from enum import IntEnum

import msgspec

from rbee.config import EngineConfig
from rbee.pooling_params import PoolingParams
from rbee.sampling_params import SamplingParams


class FinishReason(IntEnum):
    """Why a sequence ended; the code in its ring's finish word. 0 means that it has not."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4
    DEADLINE = 5
    SLOW_READER = 6
    GRAMMAR = 7


# This bit of a ring record's token marks a side record: no output, but a token id with its logprob, or a number.
# docs/transport.md ("Records") has which records a request gets, and their order.
SIDE_RECORD = 1 << 31  # vocabularies are smaller


# ---- server -> engine ------------------------------------------------------------------------------------------


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """First record to the engine: what to load."""

    engine: EngineConfig
    slow_reader_timeout: float  # seconds after which a ring that is full without a break ends its sequence


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request to run; its tokens go to `ring` under `generation`."""

    request_id: str
    ring: int
    generation: int
    prompt: bytes  # token ids as little-endian uint32, so that neither side walks a list of integers
    sampling: SamplingParams
    received_ns: int  # when the server had the whole request, CLOCK_MONOTONIC
    priority: int = 0  # smaller runs earlier; see `rbee.engine.scheduling.sequence`
    deadline_ns: int = 0  # when it ends at the latest, CLOCK_MONOTONIC; 0 is never
    cache_salt: str = ""  # only requests with the same salt share cached prefixes
    report_cached: bool = False  # first record: the number of cached prompt tokens; for requests with stop strings
    pooling: PoolingParams | None = None  # its result is a vector of the prompt, and nothing is sampled


class Wake(msgspec.Struct, frozen=True, tag=True):
    """Wakes a sleeping engine for a cancel or for freed ring space, which it then finds in shared memory."""


class Hold(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Compute nothing more for the sequence of `ring` until Release or the next Submit: nobody reads its tokens."""

    ring: int


class Release(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Go on with the sequence of `ring`, if that is held."""

    ring: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Stop stepping, end what runs with `abort`, exit 0."""


# ---- engine -> server ------------------------------------------------------------------------------------------


class Attached(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The arena is mapped; the server may unlink its name."""

    pid: int


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Progress towards Ready: `done` of `total` parts of `stage`."""

    stage: str
    done: int
    total: int
    layers_loaded: int = 0  # whose weights are where the runner computes with them
    layers_total: int = 0  # 0: not known yet
    memory_bytes: int = 0  # that the engine process holds for itself


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine takes submissions. `max_model_len` bounds prompt plus output, in tokens."""

    runner: str
    device: str
    dtype: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    load_seconds: float
    kernels: str = ""  # which code computes; with the model and the dtype it decides the tokens
    hidden_size: int = 0  # values in the vector of a prompt; 0: there is none
    has_head: bool = True  # it generates text; else it only makes vectors


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The engine cannot start; `message` is a sentence for the user. The engine exits non-zero after it."""

    message: str


ToEngine = Configure | Submit | Wake | Hold | Release | Shutdown
ToServer = Attached | Loading | Ready | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_server = msgspec.msgpack.Decoder(ToServer).decode


def pack_token_ids(token_ids: list[int]) -> bytes:
    """Token ids as `Submit.prompt` has them."""
    return array.array("I", token_ids).tobytes()
