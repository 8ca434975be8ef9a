"""Every option of rbee, declared once: the command line, its help and the engine's start record are derived from here.

Owns names, types, defaults and their explanation. Does not know how an option is parsed or what it does. Nothing
mutates a config after start; components receive the values they use, not a whole config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

DEFAULT_MODEL = "smollm2-135m-instruct"
SYNTHETIC = "synthetic"


def option(default: Any, help: str, **extra: Any) -> Any:  # noqa: A002 - the word every command-line library uses
    """A dataclass field that the command line shows with `help` (also: `metavar`, `minimum`, `maximum`)."""
    return field(default=default, metadata={"help": help, **extra})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine process needs to load a model and run it."""

    model: str = option(
        DEFAULT_MODEL,
        "A catalogue name (see `rbee pull --list`), a folder with safetensors, a .gguf file, a Hub id, or 'synthetic'.",
        metavar="NAME|FOLDER|FILE.gguf|synthetic",
    )
    runner: Literal["auto", "native", "torch", "synthetic"] = option(
        "auto",
        "What computes the logits: native is the fast one on a CPU, for models of the Llama family; torch runs every "
        "decoder that transformers does. 'auto' takes native if it can, and says why if it cannot.",
    )
    exact: bool = option(
        False,
        "Compute with float32 activations and KV cache: the native runner then gives the torch runner's tokens, but is "
        "slower.",
    )
    quantize: Literal["none", "q4", "q8"] = option(
        "none",
        "How the native runner holds weights that are stored as floats: as they are; in 8 bits (the default model's "
        "logits move by 0.0015 nats of KL); or in 4 bits, with the loss of a Q4_1 GGUF (embedding and head keep 8). "
        "Weights that are quantized already stay as they are.",
    )
    device: str = option("cpu", "The torch device of weights and KV cache. Only 'cpu' has been tested.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision of weights and KV cache; 'auto' is float32 on a CPU and the model's own elsewhere."
    )
    threads: int = option(0, "Threads that compute; 0 takes one per core the process may use.", minimum=0, maximum=1024)
    max_model_len: int = option(
        0, "Prompt plus output of one request, in tokens; 0 takes the model's own limit.", minimum=0
    )
    max_num_seqs: int = option(256, "Sequences that run in one step at most; further ones wait.", minimum=1)
    max_num_batched_tokens: int = option(
        512, "Tokens computed in one step at most. Longer prompts are computed in chunks of this size.", minimum=1
    )
    max_decode_slowdown: float = option(
        2.0,
        "While streams are running, a step takes at most about this many times as long because of prompts that are "
        "computed beside them, but has 4 of their tokens at least. Higher: prompts start sooner, streams are less "
        "steady.",
        metavar="X",
        minimum=1.05,
    )
    block_size: int = option(16, "Tokens in one block of the KV cache.", minimum=1)
    kv_cache_mib: int = option(1024, "Memory for the KV cache, in MiB.", metavar="MIB", minimum=1)
    prefix_caching: bool = option(
        True, "Keep the KV cache of prompts, for requests that begin with the same tokens (and the same cache_salt)."
    )
    slow_reader_timeout: float = option(
        60.0,
        "Seconds that a client's connection may have no room for more, or a request's ring be full, before its stream "
        "ends with an error; a connection that does not take that error either within the same time is dropped.",
        metavar="S",
        minimum=0.001,
    )
    synthetic_step_ms: float = option(
        10.0,
        "Time of one step of the synthetic model, in ms; its steps follow a fixed cadence.",
        metavar="MS",
        minimum=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the server process needs to listen, admit and write."""

    host: str = option("127.0.0.1", "Address to listen on. Anything but loopback needs --api-key or --insecure.")
    port: int = option(8000, "Port to listen on; 0 takes a free one and prints it.", minimum=0, maximum=65535)
    served_model_name: str = option(
        "", "The name clients use for the model; by default the model's own.", metavar="NAME"
    )
    api_key: tuple[str, ...] = option(
        (), "A key that clients must send as 'Authorization: Bearer KEY'; may be given several times.", metavar="KEY"
    )
    insecure: bool = option(False, "Allow listening on a public address without an API key.")
    lenient: bool = option(False, "Ignore unknown request fields (named in a Warning header) instead of answering 400.")
    max_requests: int = option(
        1024,
        "Requests held at once, running and waiting; further ones get 429. Rounded up to a multiple of 64.",
        minimum=1,
    )
    max_queued_requests: int = option(
        0,
        "Requests that may wait for the engine beside those that run (--max-num-seqs); further ones get 429. What the "
        "engine says of its queue is up to one step old, so that a burst may pass it. 0: as many as --max-requests.",
        minimum=0,
    )
    ring_capacity: int = option(
        1024, "Tokens a request's ring holds for a slow reader before its sequence pauses; a power of two.", minimum=2
    )
    replay_window: int = option(
        1024,
        "Tokens of a stream that can be written again for a client that lost its connection. Of streams that can be "
        "resumed only: those of clients that accept text/event-stream, or set stream_options.resumable.",
        minimum=1,
    )
    resume_timeout: float = option(
        30.0,
        "Seconds that such a stream is kept for a client that lost its connection, also after its end. Its ring holds "
        "its tokens; when that is full, --slow-reader-timeout counts too.",
        metavar="S",
        minimum=0.001,
    )
    max_body_mib: int = option(16, "Largest request body, in MiB; a larger one gets 413.", metavar="MIB", minimum=1)
    busy_poll: bool = option(
        False,
        "Look for tokens without sleeping while a request is open: takes the time of a wakeup out of the way of every "
        "token, and a processor core.",
    )
    drain_timeout: float = option(
        30.0, "Seconds that open streams may take to finish after SIGTERM.", metavar="S", minimum=0.0
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of `rbee serve`."""

    engine: EngineConfig
    server: ServerConfig
    debug: bool = option(False, "Log at debug level, and show tracebacks instead of one sentence.")
