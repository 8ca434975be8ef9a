"""What a client of `make compat` is asked, and the line in which it says what it saw.

Owns the arguments and the output that all client programs share. Does not know what should have been seen: the suite
compares.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Question(NamedTuple):
    """The arguments of a client program, in their order; every client asks the same, with temperature 0."""

    url: str  # of the server, without /v1
    key: str
    model: str
    prompt: str
    max_tokens: int
    stop: str  # a text within the answer
    folder: str  # of the model, with its tokenizer

    @property
    def messages(self) -> list[Any]:
        """The prompt as a chat; a list of anything, because each client has its own type of a message."""
        return [{"role": "user", "content": self.prompt}]


UNKNOWN_MODEL = "no-such-model"


class Observations:
    """What one client has seen so far."""

    def __init__(self) -> None:
        self.version = ""
        self._seen: list[dict[str, Any]] = []

    def add(self, kind: str, call: str, **saw: Any) -> None:
        """What `call` gave; `kind` is the name of that which the suite expects of it, and `saw` has facts of it."""
        self._seen.append({"kind": kind, "call": call, "saw": saw})

    def line(self) -> str:
        """All of them as JSON."""
        return json.dumps({"version": self.version, "observations": self._seen})


def tokens(prompt: int, completion: int) -> dict[str, int]:
    """Usage, as the suite compares it."""
    return {"prompt": prompt, "completion": completion}


def main(client: Callable[[Question, Observations], None], *, package: str = "") -> None:
    """Run a client with this process' arguments. What it saw before an exception is printed too.

    Args:
        client: it sets the version itself if `package` is empty.
        package: the distribution whose version is told.
    """
    url, key, model, prompt, max_tokens, stop, folder = sys.argv[1:]
    observations = Observations()
    if package:
        observations.version = version(package)
    try:
        client(Question(url, key, model, prompt, int(max_tokens), stop, folder), observations)
    finally:
        print(observations.line())  # noqa: T201 - the program's output
