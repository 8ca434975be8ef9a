"""`rbee` and `python -m rbee`: the command, with its signals handled before anything that takes time is imported.

Owns what SIGINT and SIGTERM do to `rbee serve` until `rbee.cli` handles them: exit code 0 and no word, as there. Does
not know the commands.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] == ["serve"]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _leave)
    from rbee import cli  # noqa: PLC0415 - takes a tenth of a second, in which a signal may come

    cli.main()


def _leave(_number: int, _frame: object) -> None:
    os._exit(0)  # an exception would be raised within whatever is being imported


if __name__ == "__main__":
    main()
