"""Start and options of the server process."""

import asyncio
import json
import socket
import sys

import httpx
import pytest

from rbee.config import ServerConfig
from rbee.errors import ConfigError
from rbee.server.process import check_options, listen
from tests.raw_client import COMPLETIONS, Client


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_public_address_needs_a_key(host):
    """Unless --insecure is given."""
    with pytest.raises(ConfigError, match="--api-key"):
        check_options(ServerConfig(host=host))
    check_options(ServerConfig(host=host, api_key=("k",)))
    check_options(ServerConfig(host=host, insecure=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    """Nobody else can reach it."""
    check_options(ServerConfig(host=host))


@pytest.mark.parametrize(
    "options",
    [{"ring_capacity": 1000}, {"ring_capacity": 1}, {"max_requests": 0}, {"max_body_mib": 0}, {"api_key": ("",)}],
)
def test_options_that_cannot_work(options):
    """The message names the option."""
    with pytest.raises(ConfigError, match="--" + next(iter(options)).replace("_", "-")):
        check_options(ServerConfig(**options))


def test_listening_socket():
    """Connections inherit no delay, and a bounded send buffer."""
    with listen("localhost", 0) as sock:
        client = socket.create_connection(sock.getsockname())
        accepted, _ = sock.accept()
        with client, accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * 128 * 1024


def test_port_in_use(start_server):
    """A sentence that names it, exit code 2, no traceback."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with start_server("--model", "synthetic", "--port", str(port), until=None) as server:
            assert server.wait() == 2
            log = server.log.read_text()
            assert f"127.0.0.1:{port}" in log
            assert "Traceback" not in log


def test_few_descriptors_by_default(launch):
    """A low soft limit, as shells give it, is raised, so that as many clients as the options promise can connect."""
    command = f"ulimit -Sn 64; exec {sys.executable} -m rbee.cli serve --port 0 --model synthetic --max-requests 128"

    async def run(server):
        async with Client(server.address) as client:
            body = {"prompt": "hi", "max_tokens": 5}
            answers = await asyncio.gather(*(client.read(COMPLETIONS, body) for _ in range(100)))
            assert all(answer[-1] == "[DONE]" for answer in answers)

    with launch(["bash", "-c", command]) as server:
        asyncio.run(run(server))


def test_too_few_descriptors(launch):
    """A hard limit that is too low is a sentence with the two numbers, and exit code 2."""
    command = f"ulimit -n 100; exec {sys.executable} -m rbee.cli serve --port 0 --model synthetic --max-requests 128"
    with launch(["bash", "-c", command], until=None) as server:
        assert server.wait() == 2
        assert "needs 192 file descriptors, but this process may open only 100" in server.log.read_text()


def test_address_of_another_machine():
    """An address that is not ours, or no address at all."""
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(ConfigError, match=host):
            listen(host, 0)


MODULES = """
import json, sys
from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server.process import run
engine = EngineConfig(model="synthetic", synthetic_step_ms=1)
code = run(Config(engine=engine, server=ServerConfig(port=0)), None)
print("rbee: modules " + json.dumps([code, *sys.modules]))
"""


def test_never_imports_torch(launch):
    """After a request has been served, neither torch nor transformers is in the server process."""
    with launch([sys.executable, "-c", MODULES]) as server:
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "hi"}).status_code == 200
        server.process.terminate()
        code, *modules = json.loads(server.wait_for("modules").removeprefix("rbee: modules "))
        assert code == 0
        assert "rbee.server.protocols.openai.routes" in modules
        assert {"torch", "transformers"}.isdisjoint(modules)
