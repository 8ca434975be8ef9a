"""The log format of both processes: a line on stderr with UTC time, process, level, logger. Knows no event."""

from __future__ import annotations

import logging
import time


def configure(process: str, *, debug: bool = False) -> None:
    """Log to stderr from now on; `process` is "server" or "engine", the level INFO or, with `debug`, DEBUG."""
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ {process} %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
