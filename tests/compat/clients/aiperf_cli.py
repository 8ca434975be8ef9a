"""aiperf: a short benchmark of streams, whose every text and token count is compared. Its times are not."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens

_REQUESTS = 6
_AT_A_TIME = 2


def _run(ask: Question, seen: Observations) -> None:
    program = str(Path(sys.executable).with_name("aiperf"))
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text(json.dumps({"text": ask.prompt}))

        def profile(model: str, results: Path) -> subprocess.CompletedProcess[str]:
            command = [program, "profile", "--url", ask.url, "--api-key", ask.key, "--model", model]
            command += ["--ui", "none", "--endpoint-type", "chat", "--streaming", "--use-server-token-count"]
            command += ["--request-count", str(_REQUESTS), "--concurrency", str(_AT_A_TIME)]
            command += ["--custom-dataset-type", "single_turn", "--input-file", str(prompts)]
            command += ["--extra-inputs", json.dumps({"temperature": 0, "max_tokens": ask.max_tokens})]
            command += ["--tokenizer", ask.folder, "--export-outputs-json", "--artifact-dir", str(results)]
            return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

        results = Path(folder) / "results"
        done = profile(ask.model, results)
        assert done.returncode == 0, done.stdout[-1000:]
        outputs = json.loads((results / "outputs.json").read_text())["data"]
        assert len(outputs) == _REQUESTS, f"{len(outputs)} of {_REQUESTS} requests have an output"
        answers = {  # one, if all are the same
            (
                output["response_text"],
                output["metrics"]["input_sequence_length"],
                output["metrics"]["output_sequence_length"],
            )
            for output in outputs
        }
        call = f"aiperf profile --streaming, {_REQUESTS} requests, {_AT_A_TIME} at a time"
        for text, prompt, completion in sorted(answers):
            seen.add("chat", call, text=text, tokens=tokens(prompt, completion))

        results = Path(folder) / "refusals"
        failed = profile(UNKNOWN_MODEL, results)
        assert failed.returncode == 1, "an unknown model is no error to it"
        records = (results / "profile_export.jsonl").read_text().splitlines()
        error = json.loads(records[0])["error"]
        seen.add("unknown model", "aiperf profile, exit code 1", status=error["code"], message=error["message"])


if __name__ == "__main__":
    main(_run, package="aiperf")
