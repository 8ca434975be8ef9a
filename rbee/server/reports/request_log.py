"""The one line of each request in the log.

Owns its fields and its level. Does not know how a line is written (`rbee.logs`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbee.server.reports.finished import Figures, FinishedRequest

LOGGER = "rbee.requests"
PROBES = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds
_LONGEST_PATH = 256  # characters

_log = logging.getLogger(LOGGER)


def write_line(request: FinishedRequest) -> None:
    """Log a request that is over: at INFO, those of probes at DEBUG."""
    level = logging.DEBUG if request.path in PROBES else logging.INFO
    if _log.isEnabledFor(level):
        # Without Logger.info's search for the caller's line, which is a third of the cost.
        record = logging.LogRecord(LOGGER, level, __file__, 0, "request", None, None)
        record.fields = fields_of(request)
        _log.handle(record)


def fields_of(request: FinishedRequest) -> dict[str, Any]:
    """The fields of the line; what does not apply is left out. Durations are in ms."""
    fields: dict[str, Any] = {"id": request.request_id}
    if request.method:
        fields |= {"method": request.method, "path": request.path[:_LONGEST_PATH]}
    fields["status"] = request.status
    if request.caller is not None:
        fields["key"] = request.caller
    code = request.refusal
    figures = request.figures
    if figures is not None:
        code = code or figures.refusal
        fields |= _figures(figures)
    elif request.stream_id:
        fields["stream"] = request.stream_id
    if code:
        fields["code"] = code
    fields["duration_ms"] = _ms(request.ended_ns - request.began_ns)
    return fields


def _figures(figures: Figures) -> dict[str, Any]:
    fields: dict[str, Any] = {"stream": figures.answer_id, "finish": figures.finish}
    fields |= {"prompt_tokens": figures.prompt_tokens, "completion_tokens": figures.completion_tokens}
    if figures.cached_tokens is not None:
        fields["cached_tokens"] = figures.cached_tokens
    times = {
        "queue_ms": figures.queue_ns,
        "prefill_ms": figures.prefill_ns,
        "ttft_ms": figures.ttft_ns,
        "itl_ms": figures.gap_ns,
    }
    return fields | {name: _ms(ns) for name, ns in times.items() if ns is not None}


def _ms(ns: float) -> float:
    return round(ns / 1e6, 3)
