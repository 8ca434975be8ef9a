"""An `rbee serve` that a benchmark starts on a free loopback port, and ends."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from rbee.transport.observer import Observer

if TYPE_CHECKING:
    from rbee.transport.observer import Sample


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all threads; the kernel's own clock for it, in ns."""
    clock = ctypes.c_int()
    if error := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, "clock_getcpuclockid failed")
    return time.clock_gettime(clock.value)


class OwnServer:
    """A server that is ready when the constructor returns.

    Attributes:
        url: where it listens.
        pid: of the server process.
    """

    def __init__(self, *options: str, python: str = sys.executable) -> None:
        """Start `rbee serve` of this interpreter with these options; ends the program if it does not get ready."""
        command = [python, "-m", "rbee.cli", "serve", "--port", "0", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.url = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if match := re.search(r"listening on (http://\S+)", line):
                self.url = match.group(1)
            if "rbee: ready" in line:
                return
        raise SystemExit("rbee serve ended before it was ready; its error is above.")

    def cpu_seconds(self) -> float:
        """CPU time of the server process so far, without the engine's."""
        return cpu_seconds(self.pid)

    def sample(self) -> Sample:
        """Its arena's counters and histograms now."""
        with Observer(self.pid) as observer:
            sample = observer.sample()
        if sample is None:
            raise SystemExit("The server has no engine any more; its error is above.")
        return sample

    def stop(self) -> None:
        """End it as an operator would."""
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self._process.wait(timeout=60)
