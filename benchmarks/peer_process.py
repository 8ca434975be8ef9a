"""Runs `engine_peer.py` in another virtual environment, and sends it commands."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from own_server import cpu_seconds

if TYPE_CHECKING:
    import argparse

_PEER = Path(__file__).parent / "engine_peer.py"


class PeerProcess:
    """A running peer, which sleeps until it is asked something.

    Attributes:
        name: that of its environment, such as "llama-cpp-avx2".
        facts: what the peer says of itself: its version, how it was built, and threads.
    """

    def __init__(self, python: Path, gguf: Path, *, threads: int) -> None:
        """Start it with its environment's interpreter; ends the program if there is none, or no engine in it."""
        if not python.is_file():
            raise SystemExit(f"There is no Python interpreter {python}. `make bench-engine-peers` builds the peers.")
        self.name = python.parent.parent.name
        self._process = subprocess.Popen(
            [python, _PEER, gguf, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self.ask("hello")

    def ask(self, command: str, **arguments: Any) -> Any:
        """One command and its answer; ends the program if the peer has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            answer = ""
        else:
            answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"The peer {self.name} has ended at {command!r}; its error is above.")
        return json.loads(answer)

    def cpu_seconds(self) -> float:
        """What all of its threads have used so far."""
        return cpu_seconds(self._process.pid)

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def add_peer_option(parser: argparse.ArgumentParser) -> None:
    """The option that names the peers' interpreters, --vs."""
    parser.add_argument(
        "--vs",
        nargs="+",
        action="extend",
        type=Path,
        default=[],
        metavar="PYTHON",
        help="compare with these engines: interpreters of their environments, as made by the make target",
    )
