"""What only a Unix socket has: a name in the file system, which somebody else may have taken."""

from __future__ import annotations

import signal
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.door_parts import SYNTHETIC, Door, read_answer, refusal_of
from tests.raw_client import COMPLETIONS, request_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server
    from tests.faults.conftest import Certificate


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a socket, short whatever the test's folder is called: servers start in that folder."""
    monkeypatch.chdir(tmp_path)
    return "rbee.sock"


def is_served(path: str) -> bool:
    """Whether the server at this name answers a request with any name for it."""
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as file:
        sock.settimeout(60)
        sock.connect(path)
        request = request_bytes(COMPLETIONS, {"prompt": "hi", "max_tokens": 2})
        sock.sendall(request.replace(b"Host: localhost", b"Host: any.example", 1))
        return read_answer(file).status == 200


@pytest.mark.parametrize("umask", ["000", "077"])
def test_user_and_group_may_connect_and_the_name_is_gone_at_the_end(
    launch: Callable[..., Server], path: str, umask: str
) -> None:
    """Whatever the umask; the line that says where the server listens has the name."""
    serve = f"{sys.executable} -m rbee.cli serve --model synthetic --uds {path}"
    with launch(["bash", "-c", f"umask {umask}; exec {serve}"]) as server:
        assert server.url == f"unix:{path}"
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660
        assert is_served(path)
        assert server.stop() == 0
        assert not Path(path).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_name_is_gone_however_the_server_is_stopped(
    start_server: Callable[..., Server], path: str, number: signal.Signals
) -> None:
    """Also while the engine starts."""
    with start_server(*SYNTHETIC, "--uds", path, until="listening") as server:
        assert Path(path).is_socket()
        assert server.stop(number) == 0
        assert not Path(path).exists()


def test_name_that_a_killed_server_has_left_is_replaced(start_server: Callable[..., Server], path: str) -> None:
    """Nobody has to remove it by hand."""
    with start_server(*SYNTHETIC, "--uds", path) as server:
        server.stop(signal.SIGKILL)
    assert Path(path).is_socket()
    with start_server(*SYNTHETIC, "--uds", path) as server:
        assert is_served(path)
        assert server.stop() == 0
    assert not Path(path).exists()


def test_name_of_a_live_server_is_refused(start_server: Callable[..., Server], path: str) -> None:
    """By a sentence; that server goes on as before."""
    with start_server(*SYNTHETIC, "--uds", path) as server:
        assert f"Cannot listen on --uds {path}: Address already in use" in refusal_of(start_server, "--uds", path)
        assert is_served(path)
        assert server.stop() == 0


def test_name_of_a_server_that_does_not_answer_is_refused(start_server: Callable[..., Server], path: str) -> None:
    """One whose backlog is full is asked without waiting."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
        listening.bind(path)
        listening.listen(0)
        waiting.connect(path)
        assert "Address already in use" in refusal_of(start_server, "--uds", path)
    assert Path(path).is_socket()


def test_name_that_another_server_has_taken_stays(start_server: Callable[..., Server], path: str) -> None:
    """A server removes its own name alone."""
    with start_server(*SYNTHETIC, "--uds", path) as first:
        Path(path).unlink()
        with start_server(*SYNTHETIC, "--uds", path) as second:
            assert first.stop() == 0
            assert is_served(path)
            assert second.stop() == 0
    assert not Path(path).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "no folder", "too long", "datagrams"])
def test_names_that_cannot_be_used(start_server: Callable[..., Server], path: str, kind: str) -> None:
    """Each is refused by a sentence with the name and the reason, and what was there stays."""
    name, words = path, "Address already in use"
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind == "file":
        Path(path).write_text("kept")
    elif kind == "folder":
        Path(path).mkdir()
    elif kind == "no folder":
        name, words = f"none/{path}", "No such file or directory"
    elif kind == "too long":
        name, words = "x" * 200, "path too long"
    else:
        words = "Protocol wrong type for socket"
        other.bind(path)
    before = list(Path().iterdir())
    with other:
        sentence = refusal_of(start_server, "--uds", name)
    assert f"Cannot listen on --uds {name}: " in sentence
    assert words in sentence
    assert "choose another name" in sentence
    assert list(Path().iterdir()) == before
    assert kind != "file" or Path(path).read_text() == "kept"


def test_names_for_the_server_are_bounded_only_if_some_are_given(
    start_server: Callable[..., Server], path: str
) -> None:
    """No page of a browser can reach the socket: any Host will do, unless --allowed-host says otherwise."""
    with start_server(*SYNTHETIC, "--uds", path) as server:
        assert is_served(path)
        server.stop()
    with start_server(*SYNTHETIC, "--uds", path, "--allowed-host", "rbee.example") as server:
        assert not is_served(path)
        server.stop()
    assert "--allowed-host" in refusal_of(start_server, "--uds", path, "--allowed-host", "https://rbee.example/")


def test_no_key_is_needed_whatever_the_host(start_server: Callable[..., Server], path: str) -> None:
    """The mode of the file says who may connect; --host has no meaning then."""
    with start_server(*SYNTHETIC, "--uds", path, "--host", "0.0.0.0") as server:
        assert is_served(path)
        server.stop()


def test_tls_on_a_unix_socket(start_server: Callable[..., Server], certificate: Certificate, path: str) -> None:
    """Both options together: the socket speaks TLS."""
    with start_server(*SYNTHETIC, "--uds", path, *certificate.options) as server:
        door = Door(server, path=path, trust=certificate.trust)
        with door.connect() as sock, sock.makefile("rb") as file:
            sock.sendall(request_bytes(COMPLETIONS, {"prompt": "hi", "max_tokens": 2}))
            assert read_answer(file).status == 200
        assert server.stop() == 0
