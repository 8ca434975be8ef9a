"""Writes the table of bounds in docs/security.md: `python -m tests.docs.door_table`.

Owns which bounds a stranger meets, with the values that the code has, the tests that show each, and the cost that
`make bench-door` measured for it. Does not know how a bound is kept.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import NamedTuple

from rbee.config import ServerConfig
from rbee.server.errors import LONGEST_MESSAGE
from rbee.server.http import body, protocol, rest
from rbee.server.protocols import ignored_fields, json_shape
from rbee.server.protocols.openai import tokenizing
from rbee.server.text import grammars
from tests.docs.generated_part import ROOT, GeneratedPart

PART = GeneratedPart(ROOT / "docs" / "security.md", "bounds")
_RESULTS = ROOT / "benchmarks" / "results" / "door.json"
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ServerConfig)}


class Bound(NamedTuple):
    """One of them."""

    what: str
    bound: str
    answered: str
    shown_by: str  # a file below tests/, and perhaps a test in it
    costs: str = ""  # the cases of `make bench-door` whose names hold this, a regular expression


def _option(name: str) -> str:
    return f"`--{name.replace('_', '-')}` ({_DEFAULTS[name]})"


BOUNDS = [
    Bound(
        "request line, headers, sizes and extensions of chunks, trailers, empty lines",
        f"{protocol.MAX_HEAD_BYTES // 1024} KiB together (a head that comes in one piece: up to 256 KiB more); "
        "trailers are not kept",
        "431 `headers_too_large`",
        "faults/test_door_framing.py",
    ),
    Bound("what is no request of HTTP/1.1", "", "400 `invalid_http`", "server/http/test_http_requests.py"),
    Bound(
        "the time of a head, of a new connection or of a request that has begun",
        "30 s",
        "408 `request_timeout`; a connection without a byte is closed",
        "server/http/test_http_requests.py::test_heads_that_come_too_late",
    ),
    Bound("the time between two requests", _option("keep_alive_timeout"), "closed", "server/http/test_keep_alive.py"),
    Bound(
        "connections, in all and of an address",
        "`--max-connections` and `--max-connections-per-address` (what the process may open files for; none)",
        "the one that has waited longest for its client is closed; if all are being answered, 503 "
        "`too_many_connections`, and /health",
        "faults/test_door_connections.py",
    ),
    Bound(
        "the name of the server in Host",
        "on loopback localhost, 127.0.0.1, [::1], `--allowed-host`",
        "400 `invalid_host`, 403 `host_not_allowed`",
        "server/http/test_door.py",
    ),
    Bound("pages of other sites", "none but `--cors-origin`", "403 `origin_not_allowed`", "server/http/test_door.py"),
    Bound("who has no key", "/health, /ready", "401 `invalid_api_key`", "server/http/test_door.py"),
    Bound(
        "a body of another type", "application/json", "415 `unsupported_media_type`", "server/http/test_server_http.py"
    ),
    Bound(
        "a body",
        f"{_option('max_body_mib')} MiB, {body.READ_TIMEOUT:.0f} s",
        f"413 `request_too_large`, 408 `request_timeout`; up to {rest.REST_BYTES // 2**20} MiB more, for "
        f"{rest.REST_TIME:.0f} s, are thrown away, so that the answer can be read",
        "faults/test_bodies.py",
    ),
    Bound(
        f"bodies of more than {body.SMALL // 1024} KiB that are being received or worked on, in sum",
        f"{body.LARGE_AT_ONCE} times `--max-body-mib`; the next one waits unread for {body.ROOM_PATIENCE:.0f} s",
        "429 `bodies_full`",
        "faults/test_door_bodies.py",
    ),
    Bound(
        f"what a body of more than {json_shape.UNCOUNTED_BYTES // 1024} KiB holds",
        f"{json_shape.MAX_ITEMS:,} objects, lists and strings, {json_shape.MAX_VALUES:,} values, "
        f"{json_shape.MAX_DIGITS} digits in a number; counted before it is decoded",
        "400 `too_many_values`",
        "faults/test_door_work.py",
        r"null fields|logit_bias|1,000,000 ids|objects|floats|digits|messages|parts|\\n$|600,000",
    ),
    Bound(
        "a text for the model",
        "its context; a long text is tokenized as far as shows that it does not fit",
        "400 `context_length_exceeded`",
        "faults/test_door_work.py",
        r"130,000 ids|completion|chat|u00e9|6,400",
    ),
    Bound(
        "a text for /tokenize",
        f"{tokenizing.MAX_TOKENIZED:,} tokens, or the model's context if that is longer",
        "400 `too_many_tokens`",
        "faults/test_door_work.py",
        r"(words|'a'), /tokenize",
    ),
    Bound(
        "special tokens in messages",
        "none: they are text",
        "as any text",
        "server/text/test_special_tokens.py",
        r"im_end",
    ),
    Bound(
        "what an answer repeats of a request",
        f"{LONGEST_MESSAGE:,} characters of a message, {ignored_fields.WARNING_BYTES} bytes of names in a Warning "
        "header; an X-Request-Id of 128 safe characters",
        "cut in its middle; another id",
        "faults/test_door_work.py",
        r"field's name",
    ),
    Bound(
        "work for a client that has left",
        "none is begun; a generation ends within a step",
        "",
        "faults/test_departures.py",
    ),
    Bound(
        "an answer that nobody reads",
        f"{_option('slow_reader_timeout')} s; a ring and two buffers of each stream",
        "an error event, then closed",
        "faults/test_unread_answers.py",
    ),
    Bound(
        "a job that nobody reads",
        f"{_option('job_ttl')} s; it counts among the requests held at once",
        "404 `JOB_NOT_FOUND`",
        "server/protocols/jobs/test_jobs.py::test_job_without_a_reader_is_forgotten",
    ),
    Bound(
        "requests held at once",
        f"{_option('max_requests')}, `--max-queued-requests`, `--max-queued-tokens`, `--max-requests-per-key`",
        "429 `queue_full`, `key_limit`",
        "server/streams/test_server_admission.py",
    ),
    Bound(
        "grammars that wait to be compiled",
        f"{grammars.MOST_WAITING_OF_ONE} of an API key or address, {grammars.MOST_WAITING} in all; these have turns in "
        "rotation",
        "429 `too_many_grammars`",
        "server/text/test_turns.py",
    ),
]


def _cost(pattern: str) -> str:
    """The dearest of these cases on the synthetic model; "" for none."""
    rows = json.loads(_RESULTS.read_text())["costs"]
    found = [row for row in rows if pattern and row["model"] == "synthetic" and re.search(pattern, row["case"])]
    if not found:
        return ""
    cpu, late = (max(row[name] for row in found) for name in ("cpu_ms", "excess_p99_ms"))
    return f"{cpu:.0f} ms of CPU; a token comes {late:.1f} ms late"


def table() -> str:
    """A line per bound."""
    lines = ["| what | bound | what is answered | cost | shown by |", "|---|---|---|---|---|"]
    for bound in BOUNDS:
        name = bound.shown_by.partition("::")[0]
        lines.append(f"| {bound.what} | {bound.bound} | {bound.answered} | {_cost(bound.costs)} | `tests/{name}` |")
    return "\n".join([*lines, "", ""])


if __name__ == "__main__":
    PART.page.write_text(PART.filled(table()))
