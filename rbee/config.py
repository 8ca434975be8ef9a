"""The options of `rbee serve`: the command line, its help and the engine's start record are derived from here.

Owns their names, types, defaults, bounds and help. Does not know how an option is parsed or what it does. A config is
immutable; components receive the values they use.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from rbee.errors import ConfigError

DEFAULT_MODEL = "smollm2-135m-instruct"
SYNTHETIC = "synthetic"


def option(default: Any, help: str, **extra: Any) -> Any:  # noqa: A002 - the word every command-line library uses
    """An option of the command line as a dataclass field; `extra`: `metavar`, `short`, bounds (`check_bounds`)."""
    return dataclasses.field(default=default, metadata={"help": help, **extra})


def check_bounds(config: EngineConfig | ServerConfig) -> None:
    """Raise ConfigError for an option outside its bounds."""
    for field in dataclasses.fields(config):
        value, bounds = getattr(config, field.name), field.metadata
        if value < bounds.get("minimum", value):
            rule = f"at least {bounds['minimum']}"
        elif value > bounds.get("maximum", value):
            rule = f"at most {bounds['maximum']}"
        elif bounds.get("power_of_two") and value & (value - 1):
            rule = f"a power of two, for example {field.default}"
        else:
            continue
        raise ConfigError(f"--{field.name.replace('_', '-')} is {value}; it must be {rule}.")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine process needs to load a model and run it."""

    model: str = option(
        DEFAULT_MODEL,
        "The same as MODEL: a catalogue name (see `rbee pull --list`), a folder, a .gguf file, a Hub id (org/name, or "
        "org/name:Q4_K_M for a GGUF file) or 'synthetic'.",
        metavar="MODEL",
        short="-m",
    )
    runner: Literal["auto", "native", "torch", "synthetic"] = option(
        "auto",
        "What computes the logits: native is fast on a CPU and runs models of the Llama family; torch runs every "
        "decoder that transformers does. 'auto' takes native if it can, and logs the reason if it cannot.",
    )
    exact: bool = option(
        False,
        "Compute with float32 activations and KV cache: the native runner then gives the torch runner's tokens, but is "
        "slower.",
    )
    quantize: Literal["none", "q4", "q8"] = option(
        "none",
        "How the native runner holds weights that are stored as floats: unchanged; in 8 bits (the default model's "
        "logits move by 0.0015 nats of KL); or in 4 bits, with the loss of a Q4_1 GGUF (embedding and head keep 8). "
        "Quantized weights stay unchanged.",
    )
    kv_cache_dtype: Literal["auto", "f16", "q8"] = option(
        "auto",
        "What the native runner keeps of the tokens before: 16-bit floats, or 8-bit numbers with scales. q8 holds 1.8 "
        "to 1.9 times as many tokens in the same memory, and moves the default model's logits by 0.0005 nats of KL. "
        "'auto' is f16; with --exact, floats of 32 bits.",
    )
    device: str = option("cpu", "The torch device of weights and KV cache. Only 'cpu' has been tested.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Precision of weights and KV cache; 'auto' is float32 on a CPU and the model's own elsewhere."
    )
    threads: int = option(
        0,
        "Threads that compute; 0 takes one per core that the process may use, and fewer under a control group's quota.",
        minimum=0,
        maximum=1024,
    )
    max_model_len: int = option(
        0, "Prompt plus output of one request, in tokens; 0 takes the model's own limit.", minimum=0
    )
    max_num_seqs: int = option(256, "Sequences that run in one step at most; further ones wait.", minimum=1)
    max_num_batched_tokens: int = option(
        512, "Tokens computed in one step at most. Longer prompts are computed in chunks of this size.", minimum=1
    )
    max_decode_slowdown: float = option(
        2.0,
        "About how many times as long a step may take when it computes prompts beside running streams; it computes 4 "
        "tokens of prompts at least. Higher: prompts start sooner, streams are less steady.",
        metavar="X",
        minimum=1.05,
    )
    block_size: int = option(16, "Tokens in one block of the KV cache.", minimum=1)
    kv_cache_mib: int = option(
        0,
        "Memory for the KV cache, in MiB; 0 takes a quarter of what the weights leave, between 256 and 8192.",
        metavar="MIB",
        minimum=0,
    )
    prefix_caching: bool = option(
        True, "Keep the KV cache of prompts, for requests that begin with the same tokens (and the same cache_salt)."
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

    host: str = option("127.0.0.1", "Address to listen on. Anything but loopback needs API keys or --insecure.")
    port: int = option(8000, "Port to listen on; 0 takes a free one and prints it.", minimum=0, maximum=65535)
    uds: str = option(
        "",
        "Listen on a Unix socket of this name instead, which its user and group may open; a proxy on the same machine "
        "can use it.",
        metavar="PATH",
    )
    tls_cert: str = option(
        "", "Serve https with this certificate, a PEM file that may hold a chain. Needs --tls-key.", metavar="FILE"
    )
    tls_key: str = option(
        "",
        "The private key of --tls-cert, a PEM file without a passphrase. Both are read again at SIGHUP.",
        metavar="FILE",
    )
    served_model_name: str = option(
        "", "The name clients use for the model; by default the model's own.", metavar="NAME"
    )
    generation_config: Literal["auto", "none"] = option(
        "auto",
        "The sampling parameters of requests that leave them out: auto takes what the model's generation_config.json "
        "recommends, none neutral values.",
    )
    pooling: Literal["auto", "mean", "last", "cls"] = option(
        "auto",
        "How /v1/embeddings makes one vector of a text's hidden states: auto as the model says (one that says nothing "
        "is refused), or their mean, the last token's, or the first token's (cls).",
    )
    chat_template: str = option(
        "",
        "A file with a chat template in jinja's language, in place of all that the model has; for example one that was "
        "downloaded next to a GGUF file, which brings its own.",
        metavar="FILE",
    )
    tool_parser: str = option(
        "auto",
        "How the model writes tool calls: auto as its chat template shows, none if they shall stay text, or a format: "
        "hermes, qwen3_coder, llama3_json, pythonic, lfm2, mistral, granite, functionary_v3_1, functionary_v3_2, "
        "deepseek_v3, deepseek_v31, deepseek_v32, openai.",
        metavar="NAME",
    )
    reasoning_parser: str = option(
        "auto",
        "The same for reasoning: qwen3, deepseek_r1, mistral, granite, openai.",
        metavar="NAME",
    )
    api_key: tuple[str, ...] = option(
        (),
        "A key that clients must send, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'; may be given several times. "
        "Other users of the machine see options: better are --api-key-file and the variable RBEE_API_KEY.",
        metavar="KEY",
    )
    api_key_file: str = option("", "A file with one such key per line, which is read again at SIGHUP.", metavar="FILE")
    share_prefix_cache: bool = option(
        False,
        "Let the holder of one API key find prompts in the prefix cache that another one's requests have computed; "
        "times, and cached_tokens, then tell which prompts others have sent.",
    )
    allowed_host: tuple[str, ...] = option(
        (),
        "A name that clients may use for the server, behind a proxy for example; may be given several times, and * "
        "stands for all. On a loopback address the others are refused but localhost, 127.0.0.1 and [::1], so that no "
        "web site can pass itself off as the server (DNS rebinding).",
        metavar="NAME",
    )
    cors_origin: tuple[str, ...] = option(
        (),
        "Let web pages of this origin, such as https://example.com, use the server from a browser; may be given "
        "several times, and * stands for all.",
        metavar="ORIGIN",
    )
    insecure: bool = option(False, "Allow listening on a public address without an API key.")
    lenient: bool = option(
        False,
        "Ignore unknown request fields, and unsupported ones that leave the kind of answer as it is, instead of "
        "answering 400; a Warning header names them.",
    )
    trust_content: bool = option(
        False,
        "Take special tokens in messages for special tokens, as other servers do; without it they are text, so that no "
        "message can end its turn or begin another role's.",
    )
    max_requests: int = option(
        1024,
        "Requests held at once, running and waiting; further ones get 429. Rounded up to a multiple of 64.",
        minimum=1,
        maximum=65536,
    )
    max_queued_requests: int = option(
        0,
        "Requests that may wait for the engine beside those that run (--max-num-seqs); further ones get 429. A burst "
        "within one step may pass the limit. 0: as many as --max-requests.",
        minimum=0,
    )
    max_queued_tokens: int = option(
        0,
        "Prompt tokens of requests that wait for their first token; a request that exceeds it gets 429, unless nothing "
        "waits. 0: no limit.",
        minimum=0,
    )
    max_requests_per_key: int = option(
        0,
        "Requests that one API key may hold at once, running and waiting; further ones get 429. Needs --api-key. "
        "0: no limit.",
        minimum=0,
    )
    retry_unstarted: bool = option(
        False,
        "Run requests again, once, whose engine died before their first token, when the next engine is ready; without "
        "it they end with an error.",
    )
    max_connections: int = option(
        0,
        "Connections held at once; further ones close those that have sent nothing for longest, or get 503 if all are "
        "being answered. 0: as many as the process may open files for (ulimit -n).",
        minimum=0,
    )
    max_connections_per_address: int = option(
        0,
        "The same, of one client address. 0: no limit, because all clients behind a proxy or a gateway have one "
        "address.",
        minimum=0,
    )
    ring_capacity: int = option(
        1024,
        "Tokens that wait for a slow reader before its request pauses; a power of two.",
        minimum=2,
        maximum=2**20,
        power_of_two=True,
    )
    slow_reader_timeout: float = option(
        60.0,
        "Seconds a client may stop reading before its stream ends with an error. After the same time again its "
        "connection is closed; without a stream, at once.",
        metavar="S",
        minimum=0.001,
    )
    keep_alive_timeout: int = option(
        75,
        "Seconds that a connection may be idle after an answer. Answers say so (Keep-Alive: timeout), because a client "
        "that sends its next request on a connection that is just being closed cannot know whether it was taken.",
        metavar="S",
        minimum=1,
    )
    replay_window: int = option(
        1024,
        "Tokens of a stream that are kept for a client that lost its connection and resumes. A stream can be resumed "
        "if its request sets stream_options.resumable.",
        minimum=1,
    )
    resume_timeout: float = option(
        30.0,
        "Seconds that a stream that can be resumed is kept without a connection, also after its end. It is paused "
        "meanwhile, and ends earlier where its place is needed.",
        metavar="S",
        minimum=0.001,
    )
    job_ttl: float = option(
        60.0,
        "Seconds that a job (POST /v1/jobs) is kept without a reader of its stream; then it is cancelled.",
        metavar="S",
        minimum=0.001,
    )
    max_body_mib: int = option(
        2,
        "Largest request body, in MiB; a larger one gets 413. Two hold 131,072 tokens of text in any script. While "
        "one is decoded, which takes up to 2 ms for each MiB, no token is sent.",
        metavar="MIB",
        minimum=1,
    )
    busy_poll: bool = option(
        False,
        "Poll for tokens while a request is open, instead of sleeping: saves the time of a wakeup for every token, and "
        "takes a processor core.",
    )
    hang_timeout: float = option(
        30.0,
        "Seconds without progress after which an engine that is ready is killed and started again; 0: never. Long "
        "prompts and slow machines make progress all the time.",
        metavar="S",
        minimum=0.0,
    )
    max_restarts: int = option(
        5,
        "Times within --restart-window that an engine that died is started again. After that the server ends with exit "
        "code 1.",
        minimum=0,
        maximum=1000,
    )
    restart_window: float = option(
        300.0, "Seconds after which a restart of the engine is forgotten.", metavar="S", minimum=1.0
    )
    log_requests: bool = option(
        True, "Log a line for each request when it is over, with its tokens and times; without: only what goes wrong."
    )
    otlp_traces_endpoint: str = option(
        "",
        "Send a span for each request, and for its generation, to the OpenTelemetry collector at this http or https "
        "URL. Needs the extra rbee[traces].",
        metavar="URL",
    )
    heartbeat_url: str = option(
        "",
        "Post to this http or https URL every 30 s that this worker is there, with its model and state, as rbee's "
        "queens want it.",
        metavar="URL",
    )
    drain_delay: float = option(
        0.0,
        "Seconds after SIGTERM in which /ready answers 503 and requests are still taken: a load balancer needs some to "
        "look away.",
        metavar="S",
        minimum=0.0,
    )
    drain_timeout: float = option(
        30.0, "Seconds that open streams may take to finish after SIGTERM.", metavar="S", minimum=0.0
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of `rbee serve`. Raises ConfigError for a value outside its bounds."""

    engine: EngineConfig
    server: ServerConfig
    log_format: Literal["text", "json"] = option(
        "text", "How the log on stderr is written: text, or one JSON object per line, of both processes."
    )
    debug: bool = option(False, "Log at debug level, and show tracebacks instead of one sentence.")

    def __post_init__(self) -> None:
        check_bounds(self.engine)
        check_bounds(self.server)
        if bool(self.server.tls_cert) != bool(self.server.tls_key):
            raise ConfigError("--tls-cert and --tls-key need each other; give both, or none.")
        if self.server.heartbeat_url and not self.server.heartbeat_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--heartbeat-url is {self.server.heartbeat_url!r}; it must be an http or https URL, as "
                "http://queen:8500/v1/worker-heartbeat."
            )
        if self.server.max_requests_per_key and not (self.server.api_key or self.server.api_key_file):
            raise ConfigError("--max-requests-per-key needs keys that it can count by; give --api-key-file too.")
