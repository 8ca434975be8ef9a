"""Runs the GGUF conversion (`convert_gguf`) as a child process and passes its progress on.

Owns the child: its command line, its lines of JSON, its end. Does not know the cache.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from rbee.models.progress import Progress

_log = logging.getLogger(__name__)


def convert_gguf(source: Path, folder: Path, *, lock_fd: int, progress: Progress) -> str:
    """Convert the GGUF file `source` into the existing folder `folder`.

    The child ends with this process, and keeps `lock_fd` open until then. Returns the sha256 of `source`, in hex.

    Raises:
        ModelError: the file cannot be converted.
    """
    log = folder / "convert.log"
    command = [
        sys.executable,
        "-m",
        "rbee.engine.runners.torch.convert_gguf",
        "--parent-pid",
        str(os.getpid()),
        str(source),
        str(folder),
    ]
    outcome: dict[str, str] = {}
    with (
        log.open("wb") as stderr,
        subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, pass_fds=(lock_fd,)
        ) as child,
    ):
        try:
            assert child.stdout is not None
            for line in child.stdout:
                outcome |= _pass_on(json.loads(line), progress)
        except BaseException:  # Ctrl-C above all
            child.kill()
            child.wait()
            raise
    output = log.read_text(encoding="utf-8", errors="replace").strip()
    log.unlink()
    if output:
        _log.debug("conversion of %s:\n%s", source, output)
    if "error" in outcome:
        raise ModelError(outcome["error"])
    if child.returncode or "sha256" not in outcome:
        raise ModelError(_abrupt_end(source, child.returncode, output))
    return outcome["sha256"]


def _pass_on(message: dict[str, Any], progress: Progress) -> dict[str, str]:
    match message:
        case {"stage": str(name)}:
            progress.stage(name, int(message.get("total", 0)))
        case {"done": int(amount)}:
            progress.done(amount)
        case {"note": str(text)}:
            progress.note(text)
        case _:
            return message
    return {}


def _abrupt_end(source: Path, status: int, output: str) -> str:
    last = output.splitlines()[-1] if output else "it left no message"
    if status >= 0:
        return f"The conversion of {source} ended with status {status} ({last})."
    hint = "; the machine may have run out of memory" if -status == signal.SIGKILL else ""
    return f"The conversion of {source} was killed by {signal.Signals(-status).name}{hint} ({last})."
