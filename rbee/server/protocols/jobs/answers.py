"""The shapes of the jobs protocol's answers, and of the events of its streams, for /openapi.json.

Owns names and types. The dialect writes the JSON, the tokens natively; tests hold both to each other, key by key.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from rbee.server.protocols.openapi import Shape


class JobAccepted(Shape):
    """The answer to POST /v1/jobs."""

    job_id: str
    sse_url: str


class JobCancelled(Shape):
    """The answer to a cancel."""

    job_id: str
    status: Literal["cancelled"]


class JobStarted(Shape, tag_field="type", tag="started"):
    """The first event of a job."""

    job_id: str
    model: str
    started_at: str


class JobToken(Shape, tag_field="type", tag="token"):
    """A piece of text."""

    t: str
    i: int


class JobMetrics(Shape, tag_field="type", tag="metrics"):
    """What a job has cost."""

    tokens_per_sec: float
    memory_bytes: int


class JobEnd(Shape, tag_field="type", tag="end"):
    """The end of a job."""

    tokens_out: int
    decode_time_ms: int
    stop_reason: Literal["EOS", "MAX_TOKENS", "STOP_SEQUENCE"]
    stop_sequence_matched: str | UnsetType = UNSET


class JobError(Shape, tag_field="type", tag="error"):
    """Any other end."""

    code: Literal["CANCELLED", "TIMEOUT", "INVALID_REQUEST", "INFERENCE_FAILED"]
    message: str
    retriable: bool


class LoadingProgress(Shape):
    """How far the engine is; an outcome has the stage alone."""

    stage: str
    layers_loaded: int | UnsetType = UNSET
    layers_total: int | UnsetType = UNSET
    memory_mb: int | UnsetType = UNSET


STREAMED: tuple[Any, ...] = (JobStarted, JobToken, JobMetrics, JobEnd, JobError)
