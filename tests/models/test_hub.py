"""Models from the Hugging Face Hub: the real client against a server in this process, and against none."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.models.models_parts import PREPARE

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Holds the files of its models by name, and the paths that were asked for."""

    def __init__(self, models: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.models = models
        self.requests: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    """The few answers of the Hub that a download needs, for the models in `server.models`."""

    server: HubServer

    def do_HEAD(self):
        """The same as GET without its body."""
        self.do_GET()

    def do_GET(self):
        """A repository's facts, its list of files, or one of them."""
        self.server.requests.append(self.path)
        found = re.fullmatch(
            r"/(?:api/models/)?(org/\w+)/(revision|tree|resolve)/(?:main|[0-9a-f]{40})/?(.*)", self.path
        )
        if not found:
            return self.answer(404, b"{}")
        name, verb, rest = found.groups()
        if name == "org/gated":
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        files = self.server.models.get(name)
        if files is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            facts: dict[str, object] = {
                "id": name,
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            return self.answer(200, json.dumps({**facts, "siblings": siblings}).encode())
        if verb == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return self.answer(200, json.dumps(tree).encode())
        content = files[rest]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def answer(self, status, body, headers=None):
        """Send one response."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub():
    """A server with the whole model org/tiny and with org/bin, whose weights are no safetensors."""
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle"}
    weights = save({"w": np.zeros(100, np.float32)})
    server = HubServer({"org/tiny": {**files, "model.safetensors": weights, "README.md": b"# tiny"}, "org/bin": files})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pull(tmp_path):
    """A function that prepares a Hub model in a process whose Hub is at `endpoint`."""

    def run(model, endpoint, **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        own = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **environment}
        command = [sys.executable, "-c", PREPARE, model]
        return subprocess.run(command, env=inherited | own, capture_output=True, text=True, check=False)

    return run


def test_a_hub_model_is_downloaded_once_and_found_afterwards(hub, pull):
    """Only the wanted files are fetched; a second start asks the network for nothing."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    first = pull("org/tiny", endpoint)
    assert first.returncode == 0, first.stderr
    folder = first.stdout.strip()
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "rbee: downloading org/tiny from the Hugging Face Hub" in first.stderr
    seen = len(hub.requests)
    second = pull("org/tiny", endpoint)
    assert (second.stdout.strip(), second.stderr) == (folder, "")
    assert len(hub.requests) == seen


def test_a_download_that_was_interrupted_is_completed(hub, pull):
    """A snapshot without its weights is not taken for whole."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    folder = Path(pull("org/tiny", endpoint).stdout.strip())
    (folder / "model.safetensors").unlink()
    again = pull("org/tiny", endpoint)
    assert again.stdout.strip() == str(folder)
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            "org/unheard",
            "ModelError: The Hugging Face Hub has no model org/unheard, and there is no folder of that name",
        ),
        ("org/gated", "ModelError: The Hub gives org/gated only to users who have accepted its terms."),
        ("org/bin", "has no *.safetensors file. Save the model with transformers"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(model, sentence, hub, pull):
    """Unknown, gated and unusable models each get their reason and remedy, and no traceback."""
    done = pull(model, f"http://127.0.0.1:{hub.server_port}")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["unreachable", "offline"])
def test_a_hub_that_cannot_be_reached_is_a_sentence(environment, hub, pull):
    """Without a network the sentence gives the reason and the other ways to a model."""
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    hub.shutdown()
    hub.server_close()
    done = pull("org/tiny", endpoint, **environment)
    assert done.returncode == 1
    assert "ModelError: The model org/tiny could not be downloaded from the Hugging Face Hub (" in done.stderr
    assert "or give --model a folder, a .gguf file or a name from `rbee pull --list`." in done.stderr
    assert "Traceback" not in done.stderr
