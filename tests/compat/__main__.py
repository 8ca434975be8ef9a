"""Unmodified clients in their newest versions against a real server: is what they see what plain HTTP requests get?

    make compat                     all of them; writes the table in docs/compat.md
    make compat ARGS="openai curl"  some of them; only prints theirs

Each client asks the default model the same question in all of its ways, in a process of its own. Their versions stand
in requirements.txt and package.json beside this file. The exit code is 1 if anything is not as expected, or missing.
"""
# ruff: noqa: T201 - its output is print

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import httpx

from rbee.config import DEFAULT_MODEL
from rbee.models import prepare
from rbee.models.progress import ConsoleProgress
from tests.compat.expected import Expected
from tests.compat.expected_tools import facts_of_tools
from tests.compat.questions import Asked, question
from tests.compat.running import CLIENTS, run
from tests.compat.serving import serving
from tests.compat.table import PART, content, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.running import Client
    from tests.compat.table import Row

_KEY = "key-of-the-compatibility-suite"
_PATIENCE = 120.0  # seconds for an answer to a plain request


def _with_key(clients: Sequence[Client], folder: str) -> list[Row]:
    """Against a server with a key, and one with the same key that reads the model's reasoning."""
    headers = {"Authorization": f"Bearer {_KEY}"}
    with serving(key=_KEY) as url, serving("--reasoning-parser", "qwen3", key=_KEY) as thinker:
        with (
            httpx.Client(base_url=url, headers=headers, timeout=_PATIENCE) as plain,
            httpx.Client(base_url=thinker, headers=headers, timeout=_PATIENCE) as thinking,
        ):
            expected = Expected(plain)
            expected.facts |= facts_of_tools(plain, thinking, expected.model)
        return _rows(clients, expected, Asked(url, _KEY, thinker, folder))


def _without_key(clients: Sequence[Client], folder: str) -> list[Row]:
    """Those that cannot send one."""
    with serving("--cors-origin", "*") as url:
        with httpx.Client(base_url=url, timeout=_PATIENCE) as plain:
            expected = Expected(plain)
        return _rows(clients, expected, Asked(url, "none", "", folder))


def _rows(clients: Sequence[Client], expected: Expected, asked: Asked) -> list[Row]:
    rows = []
    for client in clients:
        added = rows_of(client, run(client, question(asked, expected.model, expected.stop)), expected.facts)
        print(*added, sep="\n", flush=True)
        rows += added
    return rows


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="make compat", description=(__doc__ or "").partition("\n")[0])
    names = [client.name for client in CLIENTS]
    parser.add_argument("client", nargs="*", help=f"{', '.join(names)}; by default all of them")
    asked = parser.parse_args().client
    if unknown := sorted(set(asked) - set(names)):
        parser.error(f"there is no client {', '.join(unknown)}; there are {', '.join(names)}")
    clients = [client for client in CLIENTS if client.name in asked or not asked]
    folder = str(prepare(DEFAULT_MODEL, progress=ConsoleProgress()).path)
    rows = []
    for has_key, run_all in ((True, _with_key), (False, _without_key)):
        if chosen := [client for client in clients if client.has_key == has_key]:
            rows += run_all(chosen, folder)
    if not asked:
        PART.page.write_text(PART.filled(content(rows)))
    bad = sum(not row.is_good for row in rows)
    print(f"{bad} of {len(rows)} rows are not as they should be" if bad else f"{len(rows)} rows, all as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
