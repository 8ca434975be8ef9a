"""The clients of `make compat`, and how one of them is run in a process of its own.

Owns their list, their commands, and what one result is. Does not know what is right.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any, NamedTuple

from tests.docs.generated_part import ROOT

BUILT = ROOT / "build" / "compat"  # where the Makefile installs what the clients need
_PROGRAMS = ROOT / "tests" / "compat" / "clients"
_PATIENCE = 300.0  # seconds after which a client that hangs is killed
_EXCEPTION = re.compile(r"(\S+: )?[\w.]*(Error|Exception|Exit)\b")  # of Python and of node, which ends with other lines

_OPENAI = {"chat", "stopped chat", "response", "models", "unknown model"}
_ANTHROPIC = {"message", "stopped message", "token count", "unknown model"}
_BYTES = {"chat", "unknown model"}
_TOOLS = {"call", "object", "reasoning"}
_TOOLS_OF_RESPONSES = {"response call", "response object", "response reasoning"}
_TOOLS_OF_MESSAGES = {"message call", "message object", "message reasoning"}


class Client(NamedTuple):
    """One client; one with two programs stands twice."""

    name: str  # in ARGS
    title: str
    program: str  # a file among the clients
    kinds: set[str]  # what it must have observed at the end, in the words of `expected`
    needs: str = ""  # a program of PATH
    has_key: bool = True
    environment: str = "venv"  # of Python, below BUILT


CLIENTS = (
    Client(
        "openai",
        "openai-python",
        "openai_python.py",
        _OPENAI | {"completion", "complete response", "embedding", "wrong key"},
    ),
    Client(
        "openai-tools",
        "openai-python",
        "openai_python_tools.py",
        _TOOLS | _TOOLS_OF_RESPONSES | {"calls", "result", "response calls", "response result"},
    ),
    Client("anthropic", "anthropic-sdk-python", "anthropic_python.py", _ANTHROPIC),
    Client(
        "anthropic-tools",
        "anthropic-sdk-python",
        "anthropic_python_tools.py",
        _TOOLS_OF_MESSAGES | {"message", "message calls", "message result"},
    ),
    Client("curl", "curl", "curl.py", _BYTES | {"arrival"}, needs="curl"),
    Client("openai-npm", "openai of npm", "openai_npm.mjs", _OPENAI | {"embedding"}, needs="node"),
    Client(
        "openai-npm-tools",
        "openai of npm",
        "openai_npm_tools.mjs",
        _TOOLS | _TOOLS_OF_RESPONSES | {"calls", "response calls"},
        needs="node",
    ),
    Client("anthropic-npm", "@anthropic-ai/sdk", "anthropic_npm.mjs", _ANTHROPIC, needs="node"),
    Client(
        "anthropic-npm-tools",
        "@anthropic-ai/sdk",
        "anthropic_npm_tools.mjs",
        _TOOLS_OF_MESSAGES | {"message calls", "message result"},
        needs="node",
    ),
    Client("langchain", "LangChain", "langchain.py", _BYTES | {"completion", "completions", "message"}),
    Client(
        "langchain-tools",
        "LangChain",
        "langchain_tools.py",
        {"call", "result", "object", "message call", "message result", "message object", "message reasoning"},
    ),
    Client("litellm", "LiteLLM", "litellm_python.py", _BYTES),
    Client("litellm-tools", "LiteLLM", "litellm_tools.py", _TOOLS | {"result"}),
    Client("pydantic-ai", "pydantic-ai", "pydantic_ai_agent.py", _BYTES | {"response", "message"}),
    Client(
        "pydantic-ai-tools", "pydantic-ai", "pydantic_ai_tools.py", _TOOLS | _TOOLS_OF_RESPONSES | _TOOLS_OF_MESSAGES
    ),
    Client(
        "instructor",
        "instructor",
        "instructor_modes.py",
        {"call", "object", "response call", "message call"},
        environment="instructor",
    ),
    Client("llm", "llm", "llm_cli.py", _BYTES),
    Client("vercel", "Vercel AI SDK", "vercel_ai.mjs", _BYTES | {"stopped chat"}, needs="node"),
    Client("vercel-tools", "Vercel AI SDK", "vercel_ai_tools.mjs", _TOOLS | {"calls", "result"}, needs="node"),
    Client("chromium", "Chromium", "chromium.mjs", _BYTES, needs="chromium", has_key=False),
    Client("aiperf", "aiperf", "aiperf_cli.py", _BYTES, environment="aiperf"),
    Client("guidellm", "guidellm", "guidellm_cli.py", _BYTES, environment="guidellm"),
    Client("sglang", "SGLang's bench_serving", "sglang_serving.py", _BYTES | {"completion"}, environment="sglang"),
    Client("jdk", "JDK HttpClient", "jdk.py", _BYTES, needs="java"),
)


class Seen(NamedTuple):
    """What one client has told."""

    version: str
    observations: list[dict[str, Any]]  # each with `kind`, `call` and `saw`
    failure: str  # its exception, if it failed


def _command(client: Client) -> list[str]:
    if client.program.endswith(".py"):
        module = f"tests.compat.clients.{client.program.removesuffix('.py')}"
        return [str(BUILT / client.environment / "bin" / "python"), "-m", module]
    for program in _PROGRAMS.glob("*.mjs"):  # node looks for packages beside the program
        shutil.copy(program, BUILT)
    return ["node", str(BUILT / client.program)]


def run(client: Client, question: dict[str, Any]) -> Seen:
    """Run a client, which is asked this."""
    if client.needs and shutil.which(client.needs) is None:
        return Seen("", [], f"{client.needs} is not on PATH; install it")
    try:
        done = subprocess.run(
            [*_command(client), json.dumps(question)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return Seen("", [], f"it did not end within {_PATIENCE:.0f} s")
    # Some libraries print, too: the observations are the last line.
    last = (done.stdout.splitlines() or [""])[-1]
    told: dict[str, Any] = json.loads(last) if last.startswith('{"version"') else {"version": "", "observations": []}
    return Seen(told["version"], told["observations"], _failure(done) if done.returncode else "")


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    """The line that names the exception; what else a program said last if there is none."""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])
