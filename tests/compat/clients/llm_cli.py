"""`llm` of the command line, with the server as a model of its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.compat.clients.observing import UNKNOWN_MODEL, Observations, Question, main, tokens


def _run(ask: Question, seen: Observations) -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LLM_USER_PATH": folder}
        program = str(Path(sys.executable).with_name("llm"))
        models = [
            {"model_id": name, "model_name": name, "api_base": f"{ask.url}/v1", "api_key_name": "rbee"}
            for name in (ask.model, UNKNOWN_MODEL)
        ]
        (Path(folder) / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
        (Path(folder) / "keys.json").write_text(json.dumps({"rbee": ask.key}))

        def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )

        options = ("-o", "temperature", "0", "-o", "max_tokens", str(ask.max_tokens))
        for call, more in (("llm -m", ()), ("llm -m --no-stream", ("--no-stream",))):
            done = llm("-m", ask.model, *options, *more, ask.prompt)
            assert done.returncode == 0, done.stderr
            [logged] = json.loads(llm("logs", "-n", "1", "--json").stdout)
            used = tokens(logged["input_tokens"], logged["output_tokens"])
            seen.add("chat", call, text=done.stdout.removesuffix("\n"), tokens=used)

        failed = llm("-m", UNKNOWN_MODEL, ask.prompt)
        assert failed.returncode == 1, "an unknown model is no error to it"
        seen.add("unknown model", "llm -m, exit code 1", message=failed.stderr)


if __name__ == "__main__":
    main(_run, package="llm")
