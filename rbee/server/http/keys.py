"""The API keys of a server.

Owns where they come from, which are in force, and their numbers. Does not know requests.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_READABLE_BY_OTHERS = 0o044


class KeyRing:
    """The keys that clients may send; with none, no key is needed.

    A key has a number, in the order in which they came into force, and keeps it as long as the process runs.

    Args:
        given: in force to the end.
        file: has one key per line; "" is no file. Empty lines, and those that begin with #, are no keys.

    Raises:
        ConfigError: a key that cannot be sent, or a file that cannot be read or has no key.
    """

    def __init__(self, given: Sequence[str] = (), file: str = "") -> None:
        if not all(map(_can_be_sent, given)):
            raise ConfigError("--api-key must be a word of ASCII characters, not an empty one.")
        self._given = list(given)
        self._file = Path(file) if file else None
        self._numbers: dict[bytes, int] = {}  # of all that have been in force
        self._in_force: list[bytes] = []
        self.reload()

    def __len__(self) -> int:
        return len(self._in_force)

    @property
    def can_change(self) -> bool:
        return self._file is not None

    @property
    def others_can_read(self) -> bool:
        """Whether other users of this machine can read the file."""
        return self._file is not None and bool(self._file.stat().st_mode & _READABLE_BY_OTHERS)

    def reload(self) -> None:
        """Read the file again; ConfigError if it cannot be used, and then nothing changes."""
        keys = [key.encode() for key in dict.fromkeys([*self._given, *self._in_file()])]
        for key in keys:
            self._numbers.setdefault(key, len(self._numbers))
        self._in_force = keys

    def number_of(self, sent: bytes) -> int | None:
        """Of the key that was sent, or None if it is not in force. Takes the same time for all that are as long."""
        matches = [key for key in self._in_force if hmac.compare_digest(sent, key)]
        return self._numbers[matches[0]] if matches else None

    def _in_file(self) -> list[str]:
        if self._file is None:
            return []
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"--api-key-file {self._file} cannot be read: {reason}.") from error
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise ConfigError(f"--api-key-file {self._file} has no key: write one into each line.")
        for key in keys:
            if not _can_be_sent(key):
                number = next(number for number, line in enumerate(lines, 1) if line.strip() == key)
                raise ConfigError(f"--api-key-file {self._file}: line {number} is no word of ASCII characters.")
        return keys


def _can_be_sent(key: str) -> bool:
    return key.isascii() and key.isprintable() and bool(key.strip())
