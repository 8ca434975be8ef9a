"""SGLang's bench_serving: short benchmarks of streams, whose every text is compared. Its times are not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens

_REQUESTS = 6
_AT_A_TIME = 2


def _benchmark(ask: Question, backend: str, folder: Path, model: str, **body: Any) -> subprocess.CompletedProcess[str]:
    """One run, whose results are in the folder."""
    prompts = folder / "prompts.jsonl"
    turns = [{"content": ask.prompt}, {"content": "the answer, whose length is given below"}]
    prompts.write_text(f"{json.dumps({'conversations': turns})}\n" * _REQUESTS)
    command = [sys.executable, "-m", "tests.compat.clients.sglang_modules", "--backend", backend]
    command += ["--base-url", ask.url, "--model", ask.folder, "--served-model-name", model]
    command += ["--dataset-name", "custom", "--dataset-path", str(prompts)]
    command += ["--sharegpt-output-len", str(ask.max_tokens), "--disable-ignore-eos"]
    command += ["--num-prompts", str(_REQUESTS), "--max-concurrency", str(_AT_A_TIME)]
    command += ["--extra-request-body", json.dumps(body)] if body else []
    command += ["--output-details", "--output-file", str(folder / f"{backend}.jsonl")]
    environment = os.environ | {"OPENAI_API_KEY": ask.key}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=environment
    )


def _run(ask: Question, seen: Observations) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backend, kind, body in (
            ("sglang-oai-chat", "chat", {"stream_options": {"include_usage": True}}),
            ("sglang-oai", "completion", {}),
            ("vllm-chat", "chat", {"stream_options": {"include_usage": True}}),
        ):
            done = _benchmark(ask, backend, folder, ask.model, **body)
            assert done.returncode == 0, done.stdout[-1000:]
            results = json.loads((folder / f"{backend}.jsonl").read_text())
            assert results["errors"] == [""] * _REQUESTS, results["errors"]
            # One answer, if all are the same.
            answers = set(zip(results["generated_texts"], results["input_lens"], results["output_lens"], strict=True))
            call = f"--backend {backend}, {_REQUESTS} requests, {_AT_A_TIME} at a time"
            for text, prompt, completion in sorted(answers):
                used = {"tokens": tokens(prompt, completion)} if body else {}
                seen.add(kind, call, text=text, **used)

        failed = _benchmark(ask, "sglang-oai-chat", folder, UNKNOWN_MODEL)
        assert failed.returncode == 1, "an unknown model is no error to it"
        # It says the status in HTTP's words, and the server's answer.
        [error] = re.findall(r"Error: Not Found: ({.*})", failed.stdout)
        message = json.loads(error)["error"]["message"]
        seen.add("unknown model", "--backend sglang-oai-chat, exit code 1", message=message)


if __name__ == "__main__":
    main(_run, package="sglang")
