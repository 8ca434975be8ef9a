"""guidellm: a short benchmark of streams, whose every text and token count is compared. Its times are not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens

_REQUESTS = 6
_AT_A_TIME = 2


def _benchmark(ask: Question, model: str, folder: Path) -> dict[str, list[Any]]:
    """Its requests, by how they ended."""
    prompts, results = folder / "prompts.jsonl", folder / f"{model}.json"
    prompts.write_text(f"{json.dumps({'prompt': ask.prompt})}\n" * _REQUESTS)
    options = {
        "backend": {
            "kind": "openai_http",
            "target": ask.url,
            "model": model,
            "api_key": ask.key,
            "max_tokens": ask.max_tokens,
            "extras": {"body": {"temperature": 0}},
        },
        "profile": {"kind": "concurrent", "streams": [_AT_A_TIME]},
        "constraint": {"kind": "max_requests", "count": _REQUESTS},
        "tokenizer": {"kind": "huggingface_auto", "model": ask.folder},
        "data": {"kind": "json_file", "path": str(prompts)},
        "output": {"kind": "json", "path": str(results)},
    }
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--disable-console"]
    for name, value in options.items():
        command += [f"--{name}", json.dumps(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:]
    [benchmark] = json.loads(results.read_text())["benchmarks"]
    requests: dict[str, list[Any]] = benchmark["requests"]
    return requests


def _run(ask: Question, seen: Observations) -> None:
    with tempfile.TemporaryDirectory() as folder:
        successful = _benchmark(ask, ask.model, Path(folder))["successful"]
        assert len(successful) == _REQUESTS, f"{len(successful)} of {_REQUESTS} requests have an output"
        # One answer, if all are the same.
        answers = {(each["output"], each["prompt_tokens"], each["output_tokens"]) for each in successful}
        call = f"guidellm run, a stream, {_REQUESTS} requests, {_AT_A_TIME} at a time"
        for text, prompt, completion in sorted(answers):
            seen.add("chat", call, text=text, tokens=tokens(prompt, completion))

        error = _benchmark(ask, UNKNOWN_MODEL, Path(folder))["errored"][0]["info"]["error"]
        # It keeps the status in words of its own, and nothing of the server's message.
        [status] = re.findall(r"error '(\d+) ", error)
        seen.add("unknown model", "guidellm run, an unknown model", status=int(status))


if __name__ == "__main__":
    main(_run, package="guidellm")
