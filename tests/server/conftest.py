"""Fixtures of the tests of streams and of protocols."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.server.streams.direct_parts import Pipe

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def pipe() -> Iterator[Pipe]:
    """One for all examples."""
    with contextlib.ExitStack() as stack:
        yield Pipe(stack)
