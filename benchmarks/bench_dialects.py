"""What a streamed frame costs the server in each protocol: natively written, and through Python.

    python benchmarks/bench_dialects.py --save

The synthetic model commits one token per stream on a fixed cadence; every token is one frame. The protocols take turns
in every round, on one server, and another one begins each round; before the first one each has had a short run that
does not count. Every stream asks for its own prompt, and must have the text of the synthetic model.

* `cpu_us_per_frame`: the server process's CPU time over the run, requests included, / frames with text.
* `direct_share`: tokens that the native drain has written, of all.
* `drains_per_step`: turns of the drain. Well below 1, the server did not get its core in time and sent several steps
  together, which is cheaper per frame: the report calls such levels NOT COMPARABLE.
* `frame_bytes`: the mean size of a frame with text, without the framing of its chunk.

Through Python is the same request with a stop string that never comes.
"""

from __future__ import annotations

import json
import socket
import statistics
from typing import TYPE_CHECKING, Any

from delivery_floor import read_until_closed
from own_server import OwnServer
from program import allow_many_files, argument_parser, command_line, disturbed, finish, integers, progress, rotated
from saving import table
from sse_client import body_of, http_request

from rbee.models import synthetic

if TYPE_CHECKING:
    from collections.abc import Callable

_NEVER = "\x00"  # a stop string that the synthetic model does not write
_WARM_STEPS = 20


class Way:
    """One protocol, natively written or not.

    Args:
        path: of its route.
        fields: of every request.
        messages: the field of the conversation.
        text_of: the text of a frame's JSON; "" for a frame without text.
    """

    def __init__(self, path: str, fields: dict[str, Any], messages: str, text_of: Callable[[Any], str]) -> None:
        self.path = path
        self._fields = fields
        self._messages = messages
        self.text_of = text_of

    def request(self, question: str, tokens: int) -> dict[str, Any]:
        """The body of a request."""
        limit = "max_output_tokens" if self.path.endswith("responses") else "max_tokens"
        turns = [{"role": "user", "content": question}]
        return {"model": "synthetic", "stream": True, limit: tokens, self._messages: turns} | self._fields


def _of_chat(chunk: Any) -> str:
    return "".join(choice["delta"].get("content", "") for choice in chunk["choices"])


def _of_messages(event: Any) -> str:
    return event["delta"]["text"] if event["type"] == "content_block_delta" else ""


def _of_responses(event: Any) -> str:
    return event["delta"] if event["type"] == "response.output_text.delta" else ""


WAYS = {
    "chat": Way("/v1/chat/completions", {}, "messages", _of_chat),
    "messages": Way("/v1/messages", {}, "messages", _of_messages),
    "responses": Way("/v1/responses", {}, "input", _of_responses),
    "chat, through Python": Way("/v1/chat/completions", {"stop": _NEVER}, "messages", _of_chat),
    "messages, through Python": Way("/v1/messages", {"stop_sequences": [_NEVER]}, "messages", _of_messages),
    "responses, through Python": Way("/v1/responses", {"stop": _NEVER}, "input", _of_responses),
}


def measure(server: OwnServer, way: Way, streams: int, steps: int) -> dict[str, float]:
    """One run of one way; SystemExit if a stream is not as it must be."""
    before, cpu_before = server.sample().counters, server.cpu_seconds()
    sockets = [_start(server.url, way, number, steps) for number in range(streams)]
    pieces = read_until_closed(sockets, lambda data: data.endswith(b"0\r\n\r\n"))
    cpu, after = server.cpu_seconds() - cpu_before, server.sample().counters
    size = 0
    for number, (sock, reads) in enumerate(zip(sockets, pieces, strict=True)):
        sock.close()
        size += _check(way, number, steps, body_of(b"".join([data for _, data in reads])))
    frames = steps * streams
    return {
        "cpu_us_per_frame": cpu * 1e6 / frames,
        "direct_share": (after["direct_tokens"] - before["direct_tokens"]) / frames,
        "drains_per_step": (after["drains"] - before["drains"]) / steps,
        "frame_bytes": size / frames,
    }


def _question(number: int) -> str:
    return f"stream {number}"


def _start(url: str, way: Way, number: int, steps: int) -> socket.socket:
    host, port, request = http_request(url, way.path, way.request(_question(number), steps))
    sock = socket.create_connection((host, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(request)
    return sock


def _check(way: Way, number: int, steps: int, body: bytes) -> int:
    """The size of a stream's frames with text, of which there must be one for each of the model's tokens."""
    prompt = f"user: {_question(number)}\nassistant: ".encode()
    texts, size = [], 0
    for frame in body.split(b"\n\n")[:-1]:
        data = frame[frame.index(b"data: ") + len(b"data: ") :]
        if data != b"[DONE]" and (text := way.text_of(json.loads(data))):
            texts.append(text)
            size += len(frame) + len(b"\n\n")
    if texts != [chr(token) for token in synthetic.expected_tokens(list(prompt), steps)]:
        raise SystemExit(f"{way.path}: stream {number} brought other frames than one for each token, in order.")
    return size


def main() -> None:
    """Measure all ways in turn at every number of streams."""
    parser = argument_parser(__doc__, "dialects.{json,md}", rounds=5)
    parser.add_argument("--streams", type=integers, default="64", help="levels (default %(default)s)")
    parser.add_argument("--step-ms", type=float, default=20.0, help="cadence (default %(default)s)")
    parser.add_argument("--steps", type=int, default=500, help="tokens per stream (default %(default)s)")
    options = parser.parse_args()
    allow_many_files()
    runs: dict[tuple[int, str], list[dict[str, float]]] = {}
    server = OwnServer("--model", "synthetic", "--synthetic-step-ms", str(options.step_ms), "--no-log-requests")
    try:
        for way in WAYS.values():
            measure(server, way, max(options.streams), _WARM_STEPS)
        for number in range(options.rounds):
            for streams in options.streams:
                progress(f"round {number + 1}/{options.rounds}, {streams} streams")
                for name in rotated(list(WAYS), number):
                    run = measure(server, WAYS[name], streams, options.steps)
                    runs.setdefault((streams, name), []).append(run)
    finally:
        server.stop()
    levels: list[dict[str, Any]] = [
        {"streams": streams, "way": name}
        | {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        | {"cpu_us_per_frame_from_to": [round(pick(row["cpu_us_per_frame"] for row in rows), 2) for pick in (min, max)]}
        for streams in options.streams
        for name in WAYS
        for rows in [runs[streams, name]]
    ]
    rows_of_table = [
        [
            str(level["streams"]),
            level["way"],
            f"{level['cpu_us_per_frame']:.2f}",
            "{:.2f}-{:.2f}".format(*level["cpu_us_per_frame_from_to"]),
            f"{level['direct_share']:.2f}",
            f"{level['drains_per_step']:.2f}",
            f"{level['frame_bytes']:.0f}",
        ]
        for level in levels
    ]
    head = ["streams", "way", "CPU per frame, us", "from-to", "written natively", "drains per step", "bytes per frame"]
    report = f"Medians of {options.rounds} rounds of {options.steps} tokens.\n\n{table(head, rows_of_table)}"
    report += disturbed({f"{level['way']} at {level['streams']}": level["drains_per_step"] for level in levels})
    result = {"benchmark": "dialects", "step_ms": options.step_ms, "steps": options.steps, "levels": levels}
    finish(options, "dialects", "Frames of each protocol", report, result, preface=f"Made by `{command_line()}`.\n\n")


if __name__ == "__main__":
    main()
