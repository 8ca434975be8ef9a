"""The events of a job as its client reads them: every line is data, or nothing can read it."""

from __future__ import annotations

import json
from typing import Any

DONE = "[DONE]"
WHOLE = ["started", "token", "metrics", "end", DONE]  # the kinds of events of a job that ends by itself
CANCELLED = {
    "type": "error",
    "code": "CANCELLED",
    "message": "The job was cancelled by a request of its client.",
    "retriable": False,
}


def event_of(line: bytes) -> Any:
    """What a line says: it is data, and JSON or the end, or no client of this protocol can read it."""
    name, _, data = line.decode().partition(": ")
    assert name == "data", line
    return DONE if data.strip() == DONE else json.loads(data)


def text_of(events: list[Any]) -> str:
    """What the tokens of a whole stream say, if their numbers are right."""
    tokens = [event for event in events if event != DONE and event["type"] == "token"]
    assert [event["i"] for event in tokens] == list(range(len(tokens)))
    return "".join(event["t"] for event in tokens)


def kinds(events: list[Any]) -> list[str]:
    """The types of the events, each run of tokens once."""
    named = [event if event == DONE else event["type"] for event in events]
    return [name for before, name in zip(["", *named], named, strict=False) if (before, name) != ("token", "token")]
