"""Start of the server process."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from rbee.config import Config, EngineConfig, ServerConfig
from rbee.errors import ConfigError
from rbee.server.http.listener import listen
from rbee.server.process import run
from tests.raw_client import COMPLETIONS, Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server

pytestmark = pytest.mark.anyio

MODULES = """
import json, sys
from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server.process import run
engine = EngineConfig(model="synthetic", synthetic_step_ms=1)
code = run(Config(engine=engine, server=ServerConfig(port=0)), None)
print("rbee: modules " + json.dumps([code, *sys.modules]))
"""

NEVER_COMPILES = """
import asyncio
from rbee.config import Config, EngineConfig, ServerConfig
from rbee.server import process
from rbee.server.text.grammars import GoneError, GrammarChecks
class Compiler:
    gone = False
    async def ask(self, source):
        self.answer = asyncio.get_running_loop().create_future()
        print("rbee: asked", flush=True)
        return await self.answer
    def close(self):
        self.gone = True
        self.answer.set_exception(GoneError())
async def start(model):
    return Compiler()
process.GrammarChecks = lambda model: GrammarChecks(model, start)
process.run(Config(engine=EngineConfig(model="synthetic"), server=ServerConfig(port=0)), None)
"""


def test_port_in_use(start_server: Callable[..., Server]) -> None:
    """A sentence that names it, exit code 2, no traceback."""
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with start_server("--model", "synthetic", "--port", str(port), until=None) as server:
            assert server.wait() == 2
            log = server.log.read_text()
            assert f"127.0.0.1:{port}" in log
            assert "Traceback" not in log


async def test_few_descriptors_by_default(launch: Callable[..., Server]) -> None:
    """A low soft limit, as shells give it, is raised, so that as many clients as the options promise can connect."""
    command = f"ulimit -Sn 64; exec {sys.executable} -m rbee.cli serve --port 0 --model synthetic --max-requests 128"
    with launch(["bash", "-c", command]) as server:
        async with Client(server.address) as client:
            body = {"prompt": "hi", "max_tokens": 5}
            answers = await asyncio.gather(*(client.read(COMPLETIONS, body) for _ in range(100)))
            assert all(answer[-1] == "[DONE]" for answer in answers)


def test_unknown_formats() -> None:
    """They end the start before anything listens, with the names that there are."""
    for server in (ServerConfig(port=0, tool_parser="qwen"), ServerConfig(port=0, reasoning_parser="qwen")):
        with pytest.raises(ConfigError, match=r"-parser is 'qwen'; it must be auto, none or one of .*mistral"):
            run(Config(engine=EngineConfig(model="synthetic"), server=server), None)


def test_too_few_descriptors(launch: Callable[..., Server]) -> None:
    """A hard limit that is too low is a sentence with the two numbers, and exit code 2."""
    command = f"ulimit -n 100; exec {sys.executable} -m rbee.cli serve --port 0 --model synthetic --max-requests 128"
    with launch(["bash", "-c", command], until=None) as server:
        assert server.wait() == 2
        assert "needs 192 file descriptors, but this process may open only 100" in server.log.read_text()


def test_never_imports_torch(launch: Callable[..., Server]) -> None:
    """After a request has been served, neither torch nor transformers is in the server process."""
    with launch([sys.executable, "-c", MODULES]) as server:
        assert httpx.post(server.url + "/v1/completions", json={"prompt": "hi"}).status_code == 200
        server.process.terminate()
        code, *modules = json.loads(server.wait_for("modules").removeprefix("rbee: modules "))
        assert code == 0
        assert "rbee.server.protocols.openai.routes" in modules
        assert {"torch", "transformers"}.isdisjoint(modules)


async def test_a_request_that_waits_for_its_grammar_is_refused_at_the_end(launch: Callable[..., Server]) -> None:
    """No end waits for what compiles, and no log calls it an exception of the application."""
    with launch([sys.executable, "-c", NEVER_COMPILES]) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=120.0) as client:
            body = {"prompt": "hi", "structured_outputs": {"grammar": 'start: "a"'}}
            waiting = asyncio.create_task(client.post(COMPLETIONS, json=body))
            await asyncio.to_thread(server.wait_for, "asked")
            server.process.terminate()
            answer = await waiting
        assert await asyncio.to_thread(server.wait) == 0
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "grammars_gone")
        assert "Traceback" not in server.log.read_text()


def test_engine_that_cannot_start_ends_the_server(start_server: Callable[..., Server]) -> None:
    """With exit code 2 and the engine's own sentence in the log, once."""
    with start_server("--model", "synthetic", "--max-model-len", "9000", until=None) as server:
        assert server.wait() == 2
        assert server.log.read_text().count("--max-model-len 9000") == 1
