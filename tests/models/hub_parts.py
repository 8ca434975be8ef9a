"""A server that gives the answers of the Hugging Face Hub which a download needs, and a client process of ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# For each argument a line with the path of the model, or its error.
FIND = """
import sys
from rbee.errors import ModelError
from rbee.models import ConsoleProgress
from rbee.models.find import find
for model in sys.argv[1:]:
    try:
        with ConsoleProgress() as progress:
            print(find(model, progress=progress).path)
    except ModelError as error:
        print(f"ModelError: {error}")
"""


class HubServer(ThreadingHTTPServer):
    """Holds the files of its models by name, and the requests that came: method, path and range."""

    def __init__(self, models: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.models = models
        self.requests: list[tuple[str, str, str]] = []
        self.cut_once: dict[str, int] = {}  # after how many bytes the first answer with this file ends

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> set[str]:
        """The paths in their repositories of the files that were asked for."""
        return {path.partition("/resolve/")[2].partition("/")[2] for _, path, _ in self.requests if "/resolve/" in path}


class HubHandler(BaseHTTPRequestHandler):
    """The few answers of the Hub that a download needs, for the models in `server.models`."""

    server: HubServer

    def do_HEAD(self) -> None:
        """The same as GET without its body."""
        self.do_GET()

    def do_GET(self) -> None:
        """A repository's facts, its list of files, or one of them."""
        span = self.headers.get("Range", "")
        self.server.requests.append((self.command, self.path, span))
        found = re.fullmatch(
            r"/(?:api/models/)?(org/[\w-]+)/(revision|tree|resolve)/(main|[0-9a-f]{40})/?([^?]*)(?:\?.*)?", self.path
        )
        if not found:
            return self.answer(404, b"{}")
        name, verb, revision, rest = found.groups()
        if name == "org/gated":
            return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if name == "org/branchless" and revision == "main":
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
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
        return self.send_file(rest, files[rest], span)

    def send_file(self, path: str, content: bytes, span: str) -> None:
        """A file, or its end from where the client has it."""
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int(span.removeprefix("bytes=").partition("-")[0] or 0)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.server.cut_once.pop(path, None) if self.command == "GET" else None
        self.answer(206 if start else 200, content[start:], headers, cut=cut)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        """Send one response; with `cut`, end it after so many bytes of its body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving_hub(models: dict[str, dict[str, bytes]]) -> Iterator[HubServer]:
    """A Hub with these models."""
    server = HubServer(models)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_with_hub(command: list[str], endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python` with these arguments, whose Hub is at `endpoint` and whose caches are in `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {
        "HF_HOME": str(home),
        "RBEE_CACHE": str(home / "rbee"),
        "HF_ENDPOINT": endpoint,
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    return subprocess.run([sys.executable, *command], env=inherited | own, capture_output=True, text=True, check=False)
