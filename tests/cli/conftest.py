"""What the tests of `rbee top` look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.observed import observed_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.observed import ObservedServer


@pytest.fixture
def server() -> Iterator[ObservedServer]:
    """A process with an arena of epoch 1, and nothing else of a server."""
    with observed_server() as server:
        server.start_engine(1)
        yield server
