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
from tests.compat.expected import MAX_TOKENS, PROMPT, Expected
from tests.compat.running import CLIENTS, run
from tests.compat.serving import serving
from tests.compat.table import PART, content, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.compat.running import Client
    from tests.compat.table import Row

_KEY = "key-of-the-compatibility-suite"
_PATIENCE = 120.0  # seconds for an answer to a plain request


def _run_all(clients: Sequence[Client], folder: str, *, has_key: bool) -> list[Row]:
    """Those that send a key, or those that cannot, against one server; `folder` is the model's."""
    clients = [client for client in clients if client.has_key == has_key]
    if not clients:
        return []
    options, key = ((), _KEY) if has_key else (("--cors-origin", "*"), "")
    rows = []
    with serving(*options, key=key) as url:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(base_url=url, headers=headers, timeout=_PATIENCE) as plain:
            expected = Expected(plain)
        arguments = [url, key or "none", expected.model, PROMPT, str(MAX_TOKENS), expected.stop, folder]
        for client in clients:
            added = rows_of(client, run(client, arguments), expected.facts)
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
    rows = _run_all(clients, folder, has_key=True) + _run_all(clients, folder, has_key=False)
    if not asked:
        PART.page.write_text(PART.filled(content(rows)))
    bad = sum(not row.is_good for row in rows)
    print(f"{bad} of {len(rows)} rows are not as they should be" if bad else f"{len(rows)} rows, all as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
