"""The two formats of the log, and the thread that writes it."""

from __future__ import annotations

import json
import logging
import os
import select
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rbee import logs
from rbee.standard_streams import LineWriter, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE = 60.0  # seconds after which a line that never comes fails a test
_HOSTILE = "a\nb\r\x1b[2J\u2028\x7f\x9b\ud800"
_SHOWN = r"a\nb\r\x1b[2J\u2028\x7f\x9b\ud800"


def join_writers() -> None:
    """Wait for the threads of all writers that are closed: everything is written then."""
    for thread in threading.enumerate():
        if thread.name == "log":
            thread.join(_PATIENCE)


class Pipe:
    """A pipe and a `LineWriter` to it."""

    def __init__(self, **options: Any) -> None:
        self.reader, self.descriptor = os.pipe()
        self.lines = LineWriter(self.descriptor, lambda number: f"{number} missing", **options)

    def fill(self) -> int:
        """Leave no room in it. Returns how many bytes that took."""
        os.set_blocking(self.descriptor, False)
        size = 0
        try:
            while True:
                size += os.write(self.descriptor, b"\n" * 4096)
        except BlockingIOError:
            os.set_blocking(self.descriptor, True)
            return size

    def read(self, size: int) -> bytes:
        """So many bytes, however long they take to come."""
        data = b""
        while len(data) < size:
            assert select.select([self.reader], [], [], _PATIENCE)[0], f"after {data[-100:]!r} nothing comes"
            data += os.read(self.reader, size - len(data))
        return data

    def read_line(self) -> str:
        """Without its end."""
        data = b""
        while not data.endswith(b"\n"):
            data += self.read(1)
        return data[:-1].decode()

    def close(self) -> None:
        """Leave nothing behind."""
        self.lines.close()
        join_writers()
        for descriptor in (self.reader, self.descriptor):
            os.close(descriptor)


@pytest.fixture
def make_pipe() -> Iterator[Callable[..., Pipe]]:
    """`make_pipe(most_waiting=...)`."""
    pipes = []

    def make(**options: Any) -> Pipe:
        pipes.append(Pipe(**options))
        return pipes[-1]

    yield make
    for pipe in pipes:
        pipe.close()


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What the log has since it was configured; it has to be configured again for more."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []

    def read() -> str:
        for handler in root.handlers:
            handler.close()
        join_writers()
        return capfd.readouterr().err

    yield read
    root.handlers[:] = handlers
    root.setLevel(level)


def fail() -> None:
    """With a message that is hostile."""
    raise ValueError(_HOSTILE)


def log_failure() -> None:
    """As an exception is logged."""
    try:
        fail()
    except ValueError:
        logging.getLogger("rbee.x").exception("failed on %s", _HOSTILE)


def test_text(logged):
    """One line, with fields behind the message; of an exception, indented lines. Nothing else begins a line."""
    logs.configure("engine", log_format="text")
    logging.getLogger("rbee.x").info(
        "it %s", "runs", extra={"fields": {"a": 1, "b": "x y", "c": '"\\', "d": "", "e": "ü"}}
    )
    line = logged()
    assert line[23:] == 'Z engine INFO rbee.x: it runs a=1 b="x y" c="\\"\\\\" d="" e="ü"\n'
    logs.configure("engine")
    log_failure()
    first, *rest, last = logged().split("\n")
    assert first.endswith(f"Z engine ERROR rbee.x: failed on {_SHOWN}")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest)
    assert rest[-2:] == ["    ValueError: a", r"    b\r\x1b[2J\u2028\x7f\x9b\ud800"]
    assert last == ""


def test_json(logged):
    """One object of visible ASCII per line, with the fields as members and the exception as one."""
    logs.configure("server", log_format="json")
    logging.getLogger("rbee.x").info("it %s", _HOSTILE, extra={"fields": {"a": 1, "b": _HOSTILE, "c": 0.5}})
    log_failure()
    text = logged()
    assert text.replace("\n", "").isprintable()
    assert text.isascii()
    info, error = [json.loads(line) for line in text.split("\n")[:-1]]
    moment = info.pop("time")
    assert (len(moment), moment[10], moment[-1]) == (24, "T", "Z")
    assert info == {
        "process": "server",
        "level": "INFO",
        "logger": "rbee.x",
        "message": f"it {_HOSTILE}",
        "a": 1,
        "b": _HOSTILE,
        "c": 0.5,
    }
    assert error["exception"].startswith("Traceback")
    assert error["exception"].endswith(f"ValueError: {_HOSTILE}")


def test_debug_level(logged):
    """Only with `debug`."""
    logs.configure("server")
    logging.getLogger("rbee.x").debug("hidden")
    assert logged() == ""
    logs.configure("server", debug=True)
    logging.getLogger("rbee.x").debug("shown")
    assert logged().endswith("DEBUG rbee.x: shown\n")


@pytest.mark.parametrize("text", ["plain text, and ü", _HOSTILE])
def test_printable(text):
    """What can be shown stays as it is."""
    assert printable(text) == (_SHOWN if text == _HOSTILE else text)


def test_lines_are_written_in_order(make_pipe):
    """All of them, whoever has them, and each whole."""
    pipe = make_pipe()
    for number in range(100):
        pipe.lines.write(f"{number} ü\ud800")
    pipe.lines.flush(_PATIENCE)
    wanted = "".join(f"{number} ü\\ud800\n" for number in range(100)).encode()
    assert pipe.read(len(wanted)) == wanted


def test_nobody_waits_for_a_reader(make_pipe):
    """What finds no room is dropped, and counted where it is missing as soon as something is read."""
    pipe = make_pipe(most_waiting=30)
    size = pipe.fill()
    for number in range(1, 10):
        pipe.lines.write(f"line {number:04}")  # ten bytes, and three lines wait
    pipe.lines.flush(0)  # which does not wait either
    wanted = b"line 0001\nline 0002\nline 0003\n"
    assert pipe.read(size + len(wanted))[size:] == wanted
    missing = 0
    while missing < 6:  # in two lines, if the thread took the first three while they were written
        number, word = pipe.read_line().split()
        assert word == "missing"
        missing += int(number)
    assert missing == 6
    pipe.lines.flush(_PATIENCE)
    pipe.lines.write("line 0010")
    assert pipe.read(10) == b"line 0010\n"


def test_disk_that_is_full_for_a_while(tmp_path):
    """Lines that could not be written are counted in front of the next one that can be."""
    full = os.open("/dev/full", os.O_WRONLY)
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    lines = LineWriter(full, lambda number: f"{number} missing")
    try:
        lines.write("one")
        lines.flush(_PATIENCE)
        lines.write("two")
        lines.flush(_PATIENCE)
        os.dup2(file, full)
        lines.write("three")
        lines.flush(_PATIENCE)
        assert (tmp_path / "log").read_text() == "2 missing\nthree\n"
    finally:
        lines.close()
        os.close(full)
        os.close(file)


def test_descriptor_that_somebody_made_nonblocking(make_pipe):
    """It is waited for, and nothing is lost."""
    pipe = make_pipe()
    size = pipe.fill()
    os.set_blocking(pipe.descriptor, False)
    pipe.lines.write("line")
    assert pipe.read(size + 5)[size:] == b"line\n"


def test_end(make_pipe):
    """The thread ends behind the last line, and takes no more."""
    pipe = make_pipe()
    pipe.lines.write("last")
    [thread] = [thread for thread in threading.enumerate() if thread.name == "log"]
    pipe.lines.close()
    pipe.lines.write("too late")
    thread.join()
    os.set_blocking(pipe.reader, False)
    assert os.read(pipe.reader, 100) == b"last\n"
