"""The facts of an OpenAI stream, from its lines as a client without a parser has them.

Owns how the clients that only carry bytes (curl, the JDK) are read. Does not know how these get the lines.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.compat.clients.observing import tokens

if TYPE_CHECKING:
    from collections.abc import Iterable


def facts_of_stream(lines: Iterable[str]) -> dict[str, Any]:
    """Text, end and tokens of a chat; AssertionError unless there are only data lines, and [DONE] is the last."""
    kept = [line for line in lines if line]
    assert all(line.startswith("data: ") for line in kept), "a line of the stream is no data line"
    *payloads, done = (line.removeprefix("data: ") for line in kept)
    assert done == "[DONE]", "the stream's last line is not [DONE]"
    *chunks, last = (json.loads(payload) for payload in payloads)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return {
        "text": "".join(choice["delta"].get("content", "") for choice in choices),
        "end": choices[-1]["finish_reason"],
        "tokens": tokens(last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]),
    }


def facts_of_chat(body: str) -> dict[str, Any]:
    """The same of a whole answer."""
    answer = json.loads(body)
    [choice] = answer["choices"]
    return {
        "text": choice["message"]["content"],
        "end": choice["finish_reason"],
        "tokens": tokens(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]),
    }


def facts_of_error(status: int, body: str) -> dict[str, Any]:
    """Status, message and code."""
    error = json.loads(body)["error"]
    return {"status": status, "message": error["message"], "code": error["code"]}
