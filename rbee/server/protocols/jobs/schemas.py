"""The shapes of the jobs protocol's requests, and the limits that it has whatever the model.

Owns names, types, defaults and limits. Does not know how a field that is not here is refused
(`rbee.server.protocols.fields`), nor what depends on the model or on the server's options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rbee.server.protocols.jobs.refusals import FieldError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PROMPT_CHARACTERS = 32_768
MAX_STOP_STRINGS = 4
MAX_STOP_BYTES = 100
INFER = "infer"  # the only operation


class JobBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/jobs: what a hive passes on, and what a worker is asked directly.

    The defaults are the protocol's, not the model's.
    """

    prompt: str | None = None  # may not be absent
    max_tokens: int | None = None  # None: as many as the model's length leaves
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = []
    seed: int | None = None
    model: str | None = None
    operation: str = INFER
    stream: bool = True  # changes nothing: every job is read as a stream
    # To whom a queen sent it, which changes nothing here.
    hive_id: str | None = None
    worker_id: str | None = None
    device: str | int | None = None


class CancelBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/cancel."""

    job_id: str


class _Range(NamedTuple):
    low: float
    high: float

    @property
    def constraint(self) -> str:
        return f"range({self.low}..={self.high})"


_RANGES = {
    "max_tokens": _Range(1, 2048),
    "temperature": _Range(0.0, 2.0),
    "top_p": _Range(0.0, 1.0),
    "top_k": _Range(0, 2**31 - 1),
    "min_p": _Range(0.0, 1.0),
    "repetition_penalty": _Range(0.01, 2.0),  # logits are divided by it: 0 has no meaning, a tiny one no finite result
    "seed": _Range(0, 2**64 - 1),
}


def limit_errors(body: JobBody) -> Iterator[FieldError]:
    """Every value that is outside of the protocol's limits."""
    yield from _prompt_errors(body.prompt)
    for name, allowed in _RANGES.items():
        value: Any = getattr(body, name)
        if value is not None and not allowed.low <= value <= allowed.high:
            message = f"{name} must be from {allowed.low} to {allowed.high}."
            yield FieldError.of(name, allowed.constraint, message, value)
    yield from _stop_errors(body.stop)
    if body.operation != INFER:
        message = f"operation must be {INFER!r}; a worker has no other."
        yield FieldError.of("operation", f"one_of({INFER})", message, body.operation)


def _prompt_errors(prompt: str | None) -> Iterator[FieldError]:
    if prompt is None:
        yield FieldError.of("prompt", "required", "prompt is missing; send the text to continue.")
    elif not 1 <= len(prompt) <= MAX_PROMPT_CHARACTERS:
        yield FieldError.of(
            "prompt",
            f"length(1..={MAX_PROMPT_CHARACTERS})",
            f"prompt must have 1 to {MAX_PROMPT_CHARACTERS} characters, not {len(prompt)}.",
        )


def _stop_errors(stops: list[str]) -> Iterator[FieldError]:
    if len(stops) > MAX_STOP_STRINGS:
        message = f"stop may hold {MAX_STOP_STRINGS} strings at most, not {len(stops)}."
        yield FieldError.of("stop", f"count(0..={MAX_STOP_STRINGS})", message)
    for index, stop in enumerate(stops[:MAX_STOP_STRINGS]):
        size = len(stop.encode(errors="surrogatepass"))
        if not 1 <= size <= MAX_STOP_BYTES:
            message = f"stop[{index}] must have 1 to {MAX_STOP_BYTES} bytes, not {size}."
            yield FieldError.of(f"stop[{index}]", f"bytes(1..={MAX_STOP_BYTES})", message, stop)
