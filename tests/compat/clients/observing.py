"""What a client of `make compat` is asked, and the line in which it says what it saw.

Owns the argument and the output that all client programs share. Does not know what should have been seen: the suite
compares.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Question(NamedTuple):
    """The argument of a client program, as JSON; every client asks the same, with temperature 0."""

    url: str  # of the server, without /v1
    key: str
    model: str
    prompt: str
    max_tokens: int
    stop: str  # a text within the answer
    folder: str  # of the model, with its tokenizer
    thinker: str  # the URL of a server that reads the model's reasoning
    dialogue: list[Any]  # messages after which the model thinks
    dialogue_tokens: int
    object_prompt: str
    schema: dict[str, Any]  # of the object that it asks for
    tool: dict[str, Any]  # name, description, parameters of a function; there is one valid call of it
    free_tool: dict[str, Any]  # the same with more valid calls
    tool_prompt: str
    tool_result: str
    tool_tokens: int

    @property
    def messages(self) -> list[Any]:
        """The prompt as a chat; a list of anything, because each client has its own type of a message."""
        return user(self.prompt)


def user(text: str) -> list[Any]:
    """A chat that begins with this text."""
    return [{"role": "user", "content": text}]


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


def calls_of(calls: Iterable[tuple[str, str, Any]]) -> list[list[Any]]:
    """Tool calls, as the suite compares them: names and arguments, which may be JSON or read already.

    AssertionError unless each has an id of its own: a result could not be sent back otherwise.
    """
    calls = list(calls)
    ids = {identity for identity, _, _ in calls}
    assert len(ids) == len(calls), f"the calls' ids are {sorted(ids)}"
    assert all(ids), "a call has no id"
    return [[name, json.loads(arguments) if isinstance(arguments, str) else arguments] for _, name, arguments in calls]


def main(client: Callable[[Question, Observations], None], *, package: str = "") -> None:
    """Run a client with this process' argument. What it saw before an exception is printed too.

    Args:
        client: it sets the version itself if `package` is empty.
        package: the distribution whose version is told.
    """
    observations = Observations()
    if package:
        observations.version = version(package)
    try:
        client(Question(**json.loads(sys.argv[1])), observations)
    finally:
        print(observations.line())  # noqa: T201 - the program's output
