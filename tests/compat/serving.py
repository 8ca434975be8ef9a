"""The server that the clients of `make compat` talk to.

Owns its start, with the default model, and its end. Does not know who its clients are.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from rbee.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Iterator

# The default model was made to generate text: without --pooling it makes no embeddings.
_OPTIONS = ("--port", "0", "--no-log-requests", "--pooling", "mean")


@contextlib.contextmanager
def serving(*options: str, key: str = "") -> Iterator[str]:
    """The URL of an `rbee serve` on a free loopback port, once it is ready; it has ended behind the block.

    Its log goes to stderr. The key, if any, is not in its command.
    """
    command = [sys.executable, "-m", "rbee.cli", "serve", DEFAULT_MODEL, *_OPTIONS, *options]
    environment = os.environ | {"RBEE_API_KEY": key} if key else None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = ""
        try:
            for line in server.stdout:
                if line.startswith("rbee: listening on "):
                    url = line.split()[-1]
                if line.startswith("rbee: ready"):
                    break
            else:
                raise SystemExit("rbee serve ended before it was ready; its error is above.")
            yield url
        finally:
            server.terminate()
