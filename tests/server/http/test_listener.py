"""The listening socket, and what must hold before others can connect."""

from __future__ import annotations

import socket

import pytest

from rbee.errors import ConfigError
from rbee.server.http.keys import KeyRing
from rbee.server.http.listener import check_access, listen, url_of


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_public_address_needs_a_key(host: str) -> None:
    """Unless --insecure is given."""
    with pytest.raises(ConfigError, match="--api-key"):
        check_access(host, KeyRing(), insecure=False)
    check_access(host, KeyRing(("k",)), insecure=False)
    check_access(host, KeyRing(), insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Other machines cannot reach it."""
    check_access(host, KeyRing(), insecure=False)


@pytest.mark.parametrize("key", ["", " ", "schlüssel"])
def test_key_that_cannot_be_sent(key: str) -> None:
    """The message names the option."""
    with pytest.raises(ConfigError, match="--api-key"):
        KeyRing(("k", key))


def test_connections_inherit_the_sockets_settings() -> None:
    """No delay, and a bounded send buffer."""
    with listen("localhost", 0) as sock:
        client = socket.create_connection(sock.getsockname())
        accepted, _ = sock.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 128 * 1024


def test_brackets_of_a_url_are_no_part_of_the_address() -> None:
    """They may be given, as clients write the address."""
    with listen("[127.0.0.1]", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_the_reason_and_its_remedy() -> None:
    """An address that is not ours is no matter of the port; a port in use is."""
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: .*; --host is no address of this machine") as refusal:
        listen("192.0.2.1", 0)
    assert "--port" not in str(refusal.value)
    with listen("127.0.0.1", 0) as sock, pytest.raises(ConfigError, match=r"in use; stop what uses it, .* --port"):
        listen("127.0.0.1", sock.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_address_of_another_machine(host: str) -> None:
    """An address that is not ours, or no address at all."""
    with pytest.raises(ConfigError, match=host):
        listen(host, 0)


def test_url_of_a_socket() -> None:
    """With the port that was taken."""
    with listen("127.0.0.1", 0) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
