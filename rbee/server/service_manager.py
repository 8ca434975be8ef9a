"""What the service manager that started the server is told: ready, stopping, still alive (sd_notify(3), systemd).

Owns the datagrams and when the watchdog's come. Does not know what makes a server ready.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

_log = logging.getLogger(__name__)

_MOST_SECONDS = 3600.0  # between two signs of life


class ServiceManager:
    """Tells it, if `NOTIFY_SOCKET` names its socket; `WATCHDOG_USEC` is how often it wants a sign of life."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        self._tell("READY=1")
        if period := _watchdog_period():
            self._stay_alive(period)

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def close(self) -> None:
        """Give no more signs of life."""
        if self._timer is not None:
            self._timer.cancel()

    def _stay_alive(self, period: float) -> None:
        self._tell("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(period, self._stay_alive, period)

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state.encode(), self._address)
        except OSError as error:
            _log.warning("the service manager cannot be told %s: %s", state, error)


def _watchdog_period() -> float | None:
    """Seconds between two signs of life: half of what this process is allowed (sd_watchdog_enabled(3))."""
    wanted_of = os.environ.get("WATCHDOG_PID")
    try:
        allowed = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    except ValueError:
        return None
    if allowed <= 0 or (wanted_of is not None and wanted_of != str(os.getpid())):
        return None
    return min(allowed / 2, _MOST_SECONDS)
