"""curl: streams whose lines come one after the other, HTTP/1.0, and the offer of h2c."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main
from tests.compat.clients.sse_lines import facts_of_chat, facts_of_error, facts_of_stream

_LONG = 2000  # tokens: many more than are made while one line is read and /ready is asked


def _command(ask: Question, *options: str, **fields: Any) -> list[str]:
    body = {"model": ask.model, "messages": ask.messages, "max_tokens": ask.max_tokens, "temperature": 0} | fields
    headers = ("-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {ask.key}")
    return ["curl", "-sS", *options, f"{ask.url}/v1/chat/completions", *headers, "-d", json.dumps(body)]


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _line_by_line(ask: Question) -> bool:
    """Whether the first line arrives while the answer is still being made."""
    command = _command(ask, "-N", stream=True, max_tokens=_LONG, ignore_eos=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        line = curl.stdout.readline()
        running = json.loads(_output(["curl", "-sS", f"{ask.url}/ready"]))["rings_in_use"]
        curl.terminate()
    return line.startswith("data: {") and running == 1


def _run(ask: Question, seen: Observations) -> None:
    seen.version = _output(["curl", "--version"]).split()[1]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    seen.add("chat", "curl", **facts_of_chat(_output(_command(ask))))
    seen.add("chat", "curl -N, `stream`", **facts_of_stream(_output(_command(ask, "-N", **streamed)).splitlines()))
    seen.add("chat", "curl -0", **facts_of_chat(_output(_command(ask, "-0"))))
    seen.add(
        "chat", "curl -0 -N, `stream`", **facts_of_stream(_output(_command(ask, "-0", "-N", **streamed)).splitlines())
    )
    seen.add("chat", "curl --http2, an offer of h2c", **facts_of_chat(_output(_command(ask, "--http2"))))
    body, _, status = _output(_command(ask, "-w", "\n%{http_code}", model=UNKNOWN_MODEL)).rpartition("\n")
    seen.add("unknown model", "curl, an unknown model", **facts_of_error(int(status), body))
    seen.add("arrival", "curl -N, first line of a long `stream`", running=_line_by_line(ask))


if __name__ == "__main__":
    main(_run)
