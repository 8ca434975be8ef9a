"""The JDK's HttpClient with its defaults: each POST offers h2c and carries its body all the same."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main
from tests.compat.clients.sse_lines import facts_of_chat, facts_of_error, facts_of_stream

_SOURCE = Path(__file__).with_name("JdkClient.java")


def _post(ask: Question, **fields: Any) -> tuple[int, list[str]]:
    """Status and lines of the body."""
    body = {"model": ask.model, "messages": ask.messages, "max_tokens": ask.max_tokens, "temperature": 0} | fields
    command = ["java", "-Dfile.encoding=UTF-8", str(_SOURCE), f"{ask.url}/v1/chat/completions", ask.key]
    done = subprocess.run(command, input=json.dumps(body), stdout=subprocess.PIPE, text=True, check=True)
    status, *lines = done.stdout.splitlines()
    return int(status), lines


def _run(ask: Question, seen: Observations) -> None:
    about = subprocess.run(["java", "-version"], check=True, capture_output=True, text=True).stderr
    version = re.search(r'version "(.+?)"', about)
    seen.version = version[1] if version else about
    _, [body] = _post(ask)
    seen.add("chat", "HttpClient.send", **facts_of_chat(body))
    _, lines = _post(ask, stream=True, stream_options={"include_usage": True})
    seen.add("chat", "HttpClient.send, ofLines, `stream`", **facts_of_stream(lines))
    status, [body] = _post(ask, model=UNKNOWN_MODEL)
    seen.add("unknown model", "HttpClient.send, an unknown model", **facts_of_error(status, body))


if __name__ == "__main__":
    main(_run)
