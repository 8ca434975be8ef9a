"""What only TLS has: certificates, handshakes that fail or never end, and an end of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
import trustme
from anyio import to_thread
from cryptography.hazmat.primitives import serialization

from rbee.server.http.connections import Connections
from rbee.server.http.listener import HttpServer, listen
from rbee.server.http.tls import ServerTls
from tests.faults.door_parts import (
    LONG,
    SYNTHETIC,
    Door,
    leave,
    occupy,
    read_answer,
    read_until,
    refusal_of,
    send_until_closed,
    wait_until,
)
from tests.faults.test_door_framing import MIB
from tests.faults.test_door_ways import HEALTH, NARROW
from tests.raw_client import COMPLETIONS, request_bytes
from tests.server.server_parts import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

    from tests.conftest import Server
    from tests.faults.conftest import Certificate

CLOSE = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def door(open_door: Callable[..., Door]) -> Door:
    """For all tests that leave the server as they found it."""
    return open_door("tls", *SYNTHETIC)


@pytest.fixture(scope="module")
def narrow_door(open_door: Callable[..., Door]) -> Door:
    """To a server that runs one sequence at a time, in steps of 100 ms, 8 tokens of a prompt in each."""
    return open_door("tls", *NARROW)


def descriptors(server: Server) -> int:
    """Of the server process."""
    number: int = psutil.Process(server.pid).num_fds()
    return number


def begin_handshake(carrier: socket.socket, trust: ssl.SSLContext) -> None:
    """Send a whole ClientHello, and nothing after it."""
    outgoing = ssl.MemoryBIO()
    client = trust.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    carrier.sendall(outgoing.read())


def test_the_url_is_https(door: Door) -> None:
    """The line that says where the server listens can be used as it is."""
    assert door.server.url.startswith("https://127.0.0.1:")
    assert httpx.get(f"{door.server.url}/health", verify=door.trust or False).json() == {"status": "ok"}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_both_versions_are_spoken(door: Door, certificate: Certificate, version: ssl.TLSVersion) -> None:
    """By clients that know only one, and the protocol within is HTTP/1.1."""
    trust = ssl.create_default_context(cafile=certificate.authority)
    trust.minimum_version = trust.maximum_version = version
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with trust.wrap_socket(door.carrier(), server_hostname="localhost") as sock, sock.makefile("rb") as file:
        sock.sendall(HEALTH)
        assert read_answer(file).status == 200
        assert sock.selected_alpn_protocol() == "http/1.1"


def test_old_versions_are_not_spoken(door: Door) -> None:
    """TLS 1.1 is refused, without a traceback."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with door.carrier() as carrier, pytest.raises((ssl.SSLError, ConnectionError)):
        old.wrap_socket(carrier)
    assert "Traceback" not in door.server.log.read_text()


@pytest.mark.parametrize(
    "words",
    [HEALTH, b"\x16\x03\x01\xff\xff" + b"x" * 400, b"\x00" * 1000],
    ids=["plain HTTP", "no ClientHello", "zeros"],
)
def test_what_is_no_tls_ends_its_connection(door: Door, words: bytes) -> None:
    """It gets at most an alert of TLS, never an answer; nothing is kept, and the log has no traceback."""
    before = door.held()
    with door.carrier() as carrier:
        received = b""
        with contextlib.suppress(ConnectionError):
            carrier.sendall(words)
            while part := carrier.recv(4096):
                received += part
    assert b"HTTP" not in received
    door.until_held(before)
    assert "Traceback" not in door.server.log.read_text()


def test_client_that_does_not_trust_the_certificate(door: Door) -> None:
    """It ends the handshake with an alert; nothing is kept, and the log has no traceback."""
    before = door.held()
    for _ in range(3):
        stranger = ssl.create_default_context()
        with door.carrier() as carrier, pytest.raises(ssl.SSLCertVerificationError):
            stranger.wrap_socket(carrier, server_hostname="localhost")
    door.until_held(before)
    assert "Traceback" not in door.server.log.read_text()


@pytest.mark.parametrize("begun", ["begun", "not begun"])
def test_handshakes_without_end_keep_nobody_out(open_door: Callable[..., Door], begun: str) -> None:
    """They are connections as others, which give way to new ones: no more are open than --max-connections."""
    door = open_door("tls", *SYNTHETIC, "--max-connections", "8")
    with door.server, contextlib.ExitStack() as stack:
        before = door.held()
        for _ in range(100):
            carrier = stack.enter_context(door.carrier())
            if begun == "begun" and door.trust is not None:
                begin_handshake(carrier, door.trust)
        with door.connect() as sock, sock.makefile("rb") as file:  # was accepted after them
            sock.sendall(request_bytes(COMPLETIONS, {"prompt": "in", "max_tokens": 2}))
            assert read_answer(file).status == 200
            assert descriptors(door.server) <= before.fds + 8
        stack.close()
        wait_until(lambda: door.held() == before)
        assert "Traceback" not in door.server.log.read_text()


def test_clients_that_do_not_end_tls_keep_nobody_out(open_door: Callable[..., Door]) -> None:
    """The server has ended TLS behind its answers and waits for their ends; such connections give way as well."""
    door = open_door("tls", *SYNTHETIC, "--max-connections", "4")
    with door.server, contextlib.ExitStack() as stack:
        for _ in range(12):
            sock = stack.enter_context(door.connect())
            sock.sendall(CLOSE)
            with sock.makefile("rb") as file:
                assert read_answer(file).status == 200
        assert "max-connections" not in door.server.log.read_text()


@pytest.mark.parametrize("how", ["close", "reset", "end of TLS"])
@pytest.mark.parametrize("kind", ["streamed", "whole"])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
def test_end_of_a_connection_frees_the_ring(narrow_door: Door, stage: str, kind: str, how: str) -> None:
    """Also the end of TLS alone, with the socket still open, and the end of the socket without one of TLS."""
    door = narrow_door
    body = LONG | {"stream": kind == "streamed", "max_tokens": 190, "prompt": "x" * (8000 if stage == "prefill" else 1)}
    with contextlib.ExitStack() as stack:
        before = door.held()
        if stage == "queue":
            occupy(stack, door)
        sock = stack.enter_context(door.connect())
        sock.sendall(request_bytes(COMPLETIONS, body if stage == "prefill" else body | {"max_tokens": 8000}))
        door.until_rings(2 if stage == "queue" else 1)
        if stage == "decode" and kind == "streamed":
            read_until(sock, b'"text"')
        leave(sock, how)
        door.until_rings(1 if stage == "queue" else 0)
        stack.close()
        door.until_held(before)
    assert "Traceback" not in door.server.log.read_text()


def test_many_that_drop_in_the_midst_of_a_stream(door: Door) -> None:
    """Each in its own way, and what they held is free."""
    before = door.held()
    for number in range(60):
        sock = door.connect(4096)
        with sock:
            sock.sendall(request_bytes(COMPLETIONS, LONG | {"prompt": f"{number}"}))
            read_until(sock, b'"text"')
            leave(sock, ("close", "reset", "end of TLS")[number % 3])
    door.until_held(before)
    assert "Traceback" not in door.server.log.read_text()


def test_what_comes_behind_the_end_is_bounded(door: Door) -> None:
    """A client that goes on sending behind the last answer, and does not end TLS, is cut off."""
    with door.connect() as sock:
        sock.sendall(CLOSE)
        read_until(sock, b'"ok"')
        assert send_until_closed(sock, b" " * MIB, 64 * MIB) < 32 * MIB


# A server in this process, whose times can be short.


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that TLS needs."""
    return "asyncio", {"use_uvloop": True}


@contextlib.asynccontextmanager
async def serving_tls(
    certificate: Certificate, places: Connections, handshake_timeout: float = 0.2
) -> AsyncIterator[tuple[str, int]]:
    """The address of our HTTP server in this process."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with listen("127.0.0.1", 0) as sock:
        address: tuple[str, int] = sock.getsockname()
        tls = ServerTls(str(certificate.cert), str(certificate.key))
        http = HttpServer(app, tls=tls, head_timeout=handshake_timeout, connections=places)
        served = asyncio.ensure_future(http.serve(sockets=[sock]))
        try:
            yield address
        finally:
            http.should_exit = True
            await served


@pytest.mark.anyio
@pytest.mark.parametrize("stage", ["no byte", "half a ClientHello", "ClientHello", "no request"])
async def test_handshake_without_end_is_given_up(certificate: Certificate, stage: str) -> None:
    """As a head without end is: the server closes the connection by itself, and gives its place to others."""

    def wait_for_end(address: tuple[str, int]) -> None:
        with socket.create_connection(address, timeout=PATIENCE) as carrier:
            if stage == "half a ClientHello":
                carrier.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            elif stage == "ClientHello":
                begin_handshake(carrier, certificate.trust)
            elif stage == "no request":
                carrier = certificate.trust.wrap_socket(carrier, server_hostname="localhost")  # noqa: PLW2901
            with contextlib.suppress(ConnectionError):
                while carrier.recv(4096):
                    pass
            carrier.close()

    places = Connections(4)
    async with serving_tls(certificate, places) as address:
        await to_thread.run_sync(wait_for_end, address)


@pytest.mark.anyio
async def test_a_turn_of_the_event_loop_has_one_handshake(certificate: Certificate) -> None:
    """However many clients have sent all of theirs: what else is due is not kept waiting by more than one."""
    with contextlib.ExitStack() as stack:
        async with serving_tls(certificate, Connections(), handshake_timeout=PATIENCE) as address:
            clients = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
            for carrier in clients:
                begin_handshake(carrier, certificate.trust)
            answered = [0]
            while answered[-1] < len(clients):
                await asyncio.sleep(0)
                answered.append(len(select.select(clients, [], [], 0)[0]))
            assert max(after - before for before, after in itertools.pairwise(answered)) == 1


# Files.


def serial_number(server: Server, trust: ssl.SSLContext) -> str:
    """Of the certificate that a new connection is shown."""
    with (
        socket.create_connection(server.address, timeout=PATIENCE) as carrier,
        trust.wrap_socket(carrier, server_hostname="localhost") as sock,
    ):
        shown = sock.getpeercert()
        assert shown is not None
        return str(shown["serialNumber"])


def test_a_renewed_certificate_is_read_again(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """At SIGHUP, for new connections; streams go on. What cannot be used leaves the one before."""
    authority = trustme.CA()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def renew() -> None:
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)

    renew()
    with start_server(*SYNTHETIC, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        first = serial_number(server, trust)
        door = Door(server, trust=trust)
        with door.connect() as sock:
            sock.sendall(request_bytes(COMPLETIONS, LONG | {"max_tokens": 1000}))
            read_until(sock, b'"text"')
            renew()
            assert serial_number(server, trust) == first
            os.kill(server.pid, signal.SIGHUP)
            server.wait_for_log("the certificate was read again")
            second = serial_number(server, trust)
            assert second != first
            read_until(sock, b"data: [DONE]")
        key.write_text("no key")
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for_log("The certificate stays as it was.")
        assert serial_number(server, trust) == second
        assert server.stop() == 0


def test_certificate_and_key_need_each_other(start_server: Callable[..., Server], certificate: Certificate) -> None:
    """One alone is refused by a sentence that names both options."""
    for option, path in (("--tls-cert", certificate.cert), ("--tls-key", certificate.key)):
        sentence = refusal_of(start_server, option, str(path))
        assert "--tls-cert and --tls-key need each other" in sentence


@pytest.mark.parametrize(
    "wrong", ["missing", "a folder", "unreadable", "swapped", "empty", "no PEM", "another's key", "passphrase"]
)
def test_files_that_cannot_be_used(
    start_server: Callable[..., Server], certificate: Certificate, tmp_path: Path, wrong: str
) -> None:
    """Each is refused by a sentence with the option, the name and the reason, and exit code 2."""
    other = tmp_path / "other"
    cert, key, words = {
        "missing": (certificate.cert, other, f"--tls-key {other} cannot be read: No such file"),
        "a folder": (tmp_path, certificate.key, f"--tls-cert {tmp_path} cannot be read: Is a directory"),
        "unreadable": (other, certificate.key, f"--tls-cert {other} cannot be read: Too many levels"),
        "swapped": (certificate.key, certificate.cert, "give PEM files"),
        "empty": (certificate.cert, other, "give PEM files"),
        "no PEM": (other, certificate.key, "give PEM files"),
        "another's key": (certificate.cert, other, "the key is not that of the certificate"),
        "passphrase": (certificate.cert, other, "the key has a passphrase"),
    }[wrong]
    if wrong == "unreadable":
        other.symlink_to(other)
    elif wrong in {"empty", "no PEM"}:
        other.write_text("" if wrong == "empty" else "no PEM")
    elif wrong == "another's key":
        trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(other)
    elif wrong == "passphrase":
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_itself = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
        other.write_bytes(key_itself.private_bytes(pem, form, serialization.BestAvailableEncryption(b"secret")))
    assert words in refusal_of(start_server, "--tls-cert", str(cert), "--tls-key", str(key))
