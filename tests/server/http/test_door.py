"""Who may come in: by the name in Host, by the page that asks, by the key; on a running server."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from rbee.errors import ConfigError
from rbee.server.http.door import allowed_hosts, allowed_origins
from rbee.server.http.keys import KeyRing
from tests.raw_client import CHAT, COMPLETIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server

BODY = {"prompt": "hi", "max_tokens": 2}
SYNTHETIC = ["--model", "synthetic", "--synthetic-step-ms", "0.2"]
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    """On a loopback address, without keys."""
    return start_server(*SYNTHETIC)


@pytest.fixture(scope="module")
def open_server(start_server: Callable[..., Server]) -> Server:
    """One that has a name, may be used by pages of one site, and needs a key."""
    options = ["--allowed-host", "bee.example", "--cors-origin", "https://site.example", "--api-key", "secret"]
    return start_server(*SYNTHETIC, *options)


def ask(server: Server, method: str = "POST", path: str = COMPLETIONS, **headers: str) -> httpx.Response:
    """A request with these headers, "_" for "-", and a JSON body if it is a POST."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body: dict[str, Any] = {"json": BODY} if method == "POST" else {}
    return httpx.request(method, server.url + path, headers=named, timeout=PATIENCE, **body)


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and code."""
    return answer.status_code, answer.json()["error"]["code"] if answer.is_error else ""


def raw(server: Server, head: str) -> tuple[int, str]:
    """Status and code for a head as it is, which asks for the connection to be closed."""
    with socket.create_connection(server.address, timeout=PATIENCE) as sock:
        sock.sendall((head + "Connection: close\r\n\r\n").encode())
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    first, _, body = answer.partition(b"\r\n\r\n")
    status = int(first.split()[1])
    return status, json.loads(body)["error"]["code"] if status >= 400 else ""


# ---- the name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "localhost.:80"])
def test_names_of_this_machine(server: Server, name: str) -> None:
    """With any port: it may be a forwarded one."""
    assert ask(server, Host=name).status_code == 200


@pytest.mark.parametrize("name", ["attacker.example", "localhost.attacker.example", "127.0.0.1.nip.io:80", "10.0.0.1"])
@pytest.mark.parametrize("path", [COMPLETIONS, "/health", "/v1/models"])
def test_another_name_is_refused(server: Server, name: str, path: str) -> None:
    """It may lead to this address, and a page of that name could read the answer; the reason has the remedy."""
    answer = ask(server, "POST" if path == COMPLETIONS else "GET", path, Host=name)
    assert outcome(answer) == (403, "host_not_allowed")
    assert "--allowed-host" in answer.json()["error"]["message"]


def test_a_name_that_is_allowed(open_server: Server) -> None:
    """Beside those of the machine."""
    for name in ("bee.example", "BEE.example:443", "localhost"):
        assert ask(open_server, Host=name, x_api_key="secret").status_code == 200
    assert outcome(ask(open_server, Host="other.example", x_api_key="secret")) == (403, "host_not_allowed")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("GET /version HTTP/1.1\r\n", (400, "invalid_host")),
        ("GET /version HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", (400, "invalid_host")),
        ("GET /version HTTP/1.1\r\nHost: local host\r\n", (400, "invalid_host")),
        ("GET /version HTTP/1.1\r\nHost: localhost/x\r\n", (400, "invalid_host")),
        ("GET /version HTTP/1.1\r\nHost:\r\n", (400, "invalid_host")),
        ("GET /version HTTP/1.0\r\n", (200, "")),
        ("GET /version HTTP/1.0\r\nHost: attacker.example\r\n", (403, "host_not_allowed")),
    ],
)
def test_one_host_header(server: Server, head: str, expected: tuple[int, str]) -> None:
    """As RFC 9112 (3.2) demands; HTTP/1.0 knows none."""
    assert raw(server, head) == expected


def test_names_follow_from_the_address() -> None:
    """A public address has names that nobody knows here, unless they are given."""
    own = frozenset({"localhost", "127.0.0.1", "[::1]"})
    assert allowed_hosts("127.0.0.1", ()) == own
    assert allowed_hosts("127.0.0.2", ("Bee.example.",)) == own | {"127.0.0.2", "bee.example"}
    assert allowed_hosts("::1", ()) == own
    assert allowed_hosts("0.0.0.0", ()) is None
    assert allowed_hosts("10.0.0.1", ("bee",)) == own | {"10.0.0.1", "bee"}
    assert allowed_hosts("127.0.0.1", ("*",)) is None
    for name in ("https://x", "x:80", "x/y", ""):
        with pytest.raises(ConfigError, match="--allowed-host"):
            allowed_hosts("127.0.0.1", (name,))


# ---- the page --------------------------------------------------------------------------------------------------------

EVIL = "https://evil.example"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": EVIL, "Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Origin": "http://localhost:3000", "Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_of_another_site_is_refused(server: Server, headers: dict[str, str], method: str) -> None:
    """Whatever it asks; the reason has the remedy, and no other page may read it."""
    answer = ask(server, method, COMPLETIONS if method == "POST" else "/v1/models", **headers)
    assert outcome(answer) == (403, "origin_not_allowed")
    assert "--cors-origin" in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers


def test_who_is_no_page_of_another_site(server: Server) -> None:
    """Programs, the server's own pages, what the user typed, and a link that is followed."""
    port = server.address[1]
    for headers in (
        {},
        {"Origin": f"http://127.0.0.1:{port}"},
        {"Origin": "https://proxy.example", "Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"},
    ):
        assert ask(server, **headers).status_code == 200
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(server, "GET", "/version", **link).status_code == 200
    assert outcome(ask(server, "POST", **link)) == (403, "origin_not_allowed"), "a form of another site"


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_is_json_by_name(server: Server, media_type: str) -> None:
    """What a page may send to any site without being asked is no request; also what has no type at all."""
    headers = {"Content-Type": media_type} if media_type else {}
    content = json.dumps(BODY).encode()
    answer = httpx.post(server.url + COMPLETIONS, content=content, headers=headers, timeout=PATIENCE)
    assert outcome(answer) == (415, "unsupported_media_type")
    assert "application/json" in answer.json()["error"]["message"]


def test_pages_of_a_site_that_is_allowed(open_server: Server) -> None:
    """The browser asks without a key; answers and refusals may be read, with the headers that clients need."""
    site = "https://site.example"
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization, x-stainless-os"}
    preflight = ask(open_server, "OPTIONS", CHAT, Origin=site, **asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == site
    assert {"authorization", "x-stainless-os"} <= set(preflight.headers["access-control-allow-headers"].split(", "))
    assert "POST" in preflight.headers["access-control-allow-methods"]
    for key, status in (("secret", 200), ("wrong", 401)):
        answer = ask(open_server, Origin=site, Sec_Fetch_Site="cross-site", Authorization=f"Bearer {key}")
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == site
        assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    foreign = ask(open_server, "OPTIONS", CHAT, Origin=EVIL, **asked)
    assert outcome(foreign) == (400, "preflight_refused")
    assert "access-control-allow-origin" not in foreign.headers
    assert outcome(ask(open_server, Origin=EVIL, Authorization="Bearer secret")) == (403, "origin_not_allowed")


@pytest.mark.parametrize("names", [",".join(["x-a"] * 10_000), "x-a: b", 'x"a', "x-\ta", "x a"])
def test_a_preflight_is_repeated_only_so_far(open_server: Server, names: str) -> None:
    """The names of headers that it asks for come back, so a long list is refused, and what is no name."""
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": names}
    answer = ask(open_server, "OPTIONS", CHAT, Origin="https://site.example", **asked)
    assert outcome(answer) == (400, "preflight_refused")
    assert len(str(answer.headers)) + len(answer.content) < 2000


def test_a_preflight_repeats_no_other_bytes(open_server: Server) -> None:
    """Found by the fuzz: they made a response that is none."""
    asked = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-\u00ff\r\n"
    head = f"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://site.example\r\n{asked}"
    assert raw(open_server, head) == (400, "preflight_refused")


@pytest.mark.parametrize("names", ["x-a", "x-a, x-b,x-c", "x-a ,, x-b,", ""])
def test_a_preflight_is_repeated_as_it_came(open_server: Server, names: str) -> None:
    """Lists may have empty elements (RFC 9110, 5.6.1)."""
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": names}
    answer = ask(open_server, "OPTIONS", CHAT, Origin="https://site.example", **asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-headers"] == names


def test_a_stream_for_a_page(open_server: Server) -> None:
    """The native drain's too."""
    headers = {"Origin": "https://site.example", "Authorization": "Bearer secret"}
    with httpx.stream("POST", open_server.url + COMPLETIONS, json=BODY | {"stream": True}, headers=headers) as answer:
        assert answer.headers["access-control-allow-origin"] == "https://site.example"
        assert answer.read().endswith(b"data: [DONE]\n\n")


def test_origins_are_origins() -> None:
    """Anything else would never match, and is a mistake."""
    assert allowed_origins(("https://a.example", "http://localhost:3000", "*")) == {
        "https://a.example",
        "http://localhost:3000",
        "*",
    }
    for origin in ("a.example", "https://a.example/", "https://A.example", ""):
        with pytest.raises(ConfigError, match="--cors-origin"):
            allowed_origins((origin,))


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_a_key_in_either_header(open_server: Server) -> None:
    """OpenAI's and Anthropic's; a wrong one is not mended by the other."""
    assert ask(open_server, Authorization="Bearer secret").status_code == 200
    assert ask(open_server, Authorization="bearer  secret").status_code == 200
    assert ask(open_server, x_api_key="secret").status_code == 200
    for headers in ({}, {"x_api_key": "other"}, {"Authorization": "Bearer other", "x_api_key": "secret"}):
        assert outcome(ask(open_server, **headers)) == (401, "invalid_api_key")


def test_a_file_of_keys_is_read_again(start_server: Callable[..., Server], tmp_path: Path) -> None:
    """At SIGHUP: new keys come in, old ones go, streams go on, and each key keeps its number in the log."""
    file = tmp_path / "keys"
    file.write_text("# the keys\n\nfirst\n  second\n")
    with start_server(*SYNTHETIC, "--api-key-file", str(file)) as server:
        assert [ask(server, x_api_key=key).status_code for key in ("first", "second", "third")] == [200, 200, 401]
        long = BODY | {"max_tokens": 2000, "stream": True}
        with httpx.stream("POST", server.url + COMPLETIONS, json=long, headers={"x-api-key": "first"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            file.write_text("third\nsecond\n")
            os.kill(server.pid, signal.SIGHUP)
            server.wait_for_log("2 API keys are in force")
            assert [ask(server, x_api_key=key).status_code for key in ("first", "second", "third")] == [401, 200, 200]
            assert [line for line in lines if line][-1] == "data: [DONE]"
        file.write_text("# none\n")
        os.kill(server.pid, signal.SIGHUP)
        server.wait_for_log("has no key")
        assert ask(server, x_api_key="third", X_Request_Id="last").status_code == 200
        server.wait_for_log("id=last")
        [line] = [line for line in server.log.read_text().splitlines() if "id=last" in line]
        assert " key=2 " in line
        assert server.stop() == 0


@pytest.fixture
def ring(tmp_path: Path) -> Callable[[str], KeyRing]:
    """`ring(text)`: of a file with this text."""

    def make(text: str) -> KeyRing:
        file = tmp_path / "keys"
        file.write_text(text)
        return KeyRing((), str(file))

    return make


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "has no key"), ("# a\n \n", "has no key"), ("a\n\nü\n", "line 3 is no word of ASCII"), ("a\x00b", "line 1")],
)
def test_files_that_have_no_keys(ring: Callable[[str], KeyRing], text: str, reason: str) -> None:
    """A sentence with the line; the key itself is in no message."""
    with pytest.raises(ConfigError, match=reason) as caught:
        ring(text)
    assert "ü" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Or cannot be read."""
    with pytest.raises(ConfigError, match="No such file"):
        KeyRing((), str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="Is a directory"):
        KeyRing((), str(tmp_path))


def test_who_else_can_read_the_file(ring: Callable[[str], KeyRing], tmp_path: Path) -> None:
    """The server says so at its start."""
    keys = ring("a\n")
    for mode, readable in ((0o600, False), (0o640, True), (0o604, True)):
        (tmp_path / "keys").chmod(mode)
        assert keys.others_can_read == readable
    assert not KeyRing(("a",)).others_can_read


def test_prompts_of_another_key_are_not_found(start_server: Callable[..., Server]) -> None:
    """In the prefix cache, whatever salt is chosen, unless keys share it."""

    def cached(server: Server, key: str, **fields: str) -> int:
        body = {"prompt": "p" * 100, "max_tokens": 1, **fields}
        answer = httpx.post(server.url + COMPLETIONS, json=body, headers={"x-api-key": key}, timeout=PATIENCE).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    keys = ["--api-key", "alice", "--api-key", "bob"]
    with start_server(*SYNTHETIC, *keys) as server:
        assert [cached(server, key) for key in ("alice", "alice", "bob", "bob")] == [0, 96, 0, 96]
        assert [cached(server, "bob", cache_salt=salt) for salt in ("0:", "1:", "alice")] == [0, 0, 0]
    with start_server(*SYNTHETIC, *keys, "--share-prefix-cache") as server:
        assert [cached(server, key) for key in ("alice", "bob")] == [0, 96]


def test_a_key_on_the_command_line_is_warned_of(start_server: Callable[..., Server], monkeypatch: Any) -> None:
    """Not one from the environment."""
    with start_server(*SYNTHETIC, "--api-key", "secret") as server:
        assert "--api-key-file" in server.log.read_text()
        assert "secret" not in server.log.read_text()
    monkeypatch.setenv("RBEE_API_KEY", "secret")
    with start_server(*SYNTHETIC) as server:
        assert ask(server).status_code == 401
        assert "other users" not in server.log.read_text()
