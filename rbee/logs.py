"""How both processes log: one line to stderr, with UTC time, process, level and logger name.

Owns the format. The library's modules only ever call `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import logging
import time


def configure(process: str, *, debug: bool = False) -> None:
    """Send all log records of this process ("server" or "engine") to stderr, at INFO or, with `debug`, DEBUG."""
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ {process} %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
