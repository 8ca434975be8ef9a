"""Fixtures of the tests of the link."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.server.link.link_parts import running_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.server.link.link_parts import Engine


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine whose client has no options."""
    with running_engine() as engine:
        yield engine
