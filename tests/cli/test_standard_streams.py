"""A server whose standard streams are closed, full, or read by nobody; and the end of one that is still starting."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from rbee.cli import ExitBySignal
from rbee.models import ConsoleProgress, catalogue
from rbee.models.prepare import _entry_name

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVE = [sys.executable, "-m", "rbee.cli", "serve", "--port", "0"]
SYNTHETIC = [*SERVE, "--model", "synthetic", "--synthetic-step-ms", "1"]
_PATIENCE = 60.0  # seconds after which a test that waits for a process fails


def by_shell(redirections: str) -> list[str]:
    """The synthetic server, started by a shell with these redirections."""
    return ["sh", "-c", f'exec "$@" {redirections}', "sh", *SYNTHETIC]


def url_of(process: subprocess.Popen[bytes]) -> str:
    """Where the process listens, as soon as it does: it may have no stdout to say so."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return f"http://127.0.0.1:{connection.laddr.port}"
        assert process.poll() is None, "the server has ended"
    pytest.fail("the server does not listen")


def answer(url: str) -> str:
    """Of one request, as soon as the server is ready."""
    deadline = time.monotonic() + _PATIENCE
    while httpx.get(f"{url}/ready").status_code != 200:
        assert time.monotonic() < deadline, "the server does not get ready"
    done = httpx.post(f"{url}/v1/completions", json={"model": "synthetic", "prompt": "x", "max_tokens": 3})
    assert done.status_code == 200
    text: str = done.json()["choices"][0]["text"]
    return text


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that do not outlive the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "redirections",
    ["<&- >&- 2>&-", ">&-", "2>&-", ">/dev/full", ">/dev/full 2>/dev/full", "<&- >/dev/full 2>&-"],
)
def test_streams_that_take_nothing(redirections, ended):
    """The server serves and ends with 0; descriptors 0 to 2, of its children too, are no sockets or files of ours."""
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(by_shell(redirections), stdin=nowhere, stdout=nowhere, stderr=nowhere)
    ended.append(process)
    assert len(answer(url_of(process))) == 3
    server = psutil.Process(process.pid)
    assert len(server.children()) >= 1
    for one in (server, *server.children()):
        for number in range(3):
            assert os.readlink(f"/proc/{one.pid}/fd/{number}") in ("/dev/null", "/dev/full")  # noqa: PTH115 - no path
    process.terminate()
    assert process.wait(_PATIENCE) == 0


@pytest.mark.parametrize("number", [1, 2])
def test_reader_that_has_gone(number, ended):
    """As `| head -1` does; of stdout after the first line, of stderr before it."""
    ours, theirs = os.pipe()
    nowhere = subprocess.DEVNULL
    stdout, stderr = (theirs, nowhere) if number == 1 else (nowhere, theirs)
    process = subprocess.Popen(SYNTHETIC, stdout=stdout, stderr=stderr)
    ended.append(process)
    os.close(theirs)
    with os.fdopen(ours) as reader:
        if number == 1:
            assert reader.readline().startswith("rbee: listening on")
    assert len(answer(url_of(process))) == 3
    process.terminate()
    assert process.wait(_PATIENCE) == 0


def end_while_importing(command, number, ended):
    """Send the signal when an import has begun: the process ends with 0 and without a word."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    ended.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, out, err) == (0, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", [[sys.executable, "-m", "rbee"], [str(Path(sys.executable).with_name("rbee"))]])
def test_signal_while_the_command_is_imported(number, command, tmp_path, ended, monkeypatch):
    """The server ends with 0 and without a word; here the import of click takes for ever."""
    (tmp_path / "click.py").write_text("import os, signal\nos.write(1, b'importing\\n')\nsignal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    end_while_importing([*command, "serve", "synthetic"], number, ended)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_the_server_is_imported(number, tmp_path, ended, monkeypatch):
    """The server ends with 0 and without a word, also if what is imported loses exceptions, as some C code does."""
    work = "os.write(1, b'importing\\n'), signal.pause()"
    (tmp_path / "uvloop.py").write_text(f"import os, signal\ntry: {work}\nexcept BaseException: os._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    end_while_importing(SYNTHETIC, number, ended)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_the_model_is_made_ready(number, tmp_path, ended, monkeypatch):
    """The server ends with 0 and without a traceback; here it waits for another process that makes the model ready."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path))
    model = catalogue.find("smollm2-135m-instruct")
    assert model is not None
    entry = tmp_path / _entry_name(model.name, model.sha256)
    with entry.with_name(entry.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(SERVE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        ended.append(process)
        assert process.stderr is not None
        assert b"waiting for another process" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=_PATIENCE)
    assert (process.returncode, out, err) == (0, b"", b"")


class Finalized:
    """A signal comes within its finalizer, where an exception is lost."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def prepare_through_a_signal(*, reports: bool) -> None:
    """As `rbee serve` makes a model ready."""
    with ExitBySignal() as signals, ConsoleProgress(signals.check) as progress:
        Finalized()
        if reports:
            progress.stage("next")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("reports", [True, False])
def test_signal_within_a_finalizer_is_not_lost(reports, capsys):
    """The next report of progress ends the work, or its end does."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        prepare_through_a_signal(reports=reports)
    assert left.value.code == 0
    assert "next" not in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_hangup_ends_no_stream(start_server):
    """As a terminal that is closed sends it, to server and engine."""
    with start_server("--model", "synthetic", "--synthetic-step-ms", "1") as server:
        body = {"model": "synthetic", "prompt": "x", "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=_PATIENCE) as response:
            lines = response.iter_lines()
            next(lines)
            for pid in (server.pid, server.engine.pid):
                os.kill(pid, signal.SIGHUP)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.stop() == 0


@pytest.mark.parametrize("arguments", [["pull", "--list"], ["--version"]], ids=str)
def test_disk_that_is_full(arguments):
    """Of a command whose output is what it is for: one sentence, and exit code 2."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - no file
        done = subprocess.run(
            [sys.executable, "-m", "rbee.cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == "rbee: The output cannot be written: No space left on device.\n"
    assert done.returncode == 2
