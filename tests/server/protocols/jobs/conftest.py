"""Servers and clients that the tests of jobs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.server.protocols.jobs.jobs_parts import JobClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Server


@pytest.fixture
def client(synthetic_server: Server) -> JobClient:
    """Of the server with the synthetic model."""
    return JobClient(synthetic_server)


@pytest.fixture(scope="session")
def slow_server(start_server: Callable[..., Server]) -> Server:
    """One whose long jobs do not end by themselves while a test looks at them."""
    return start_server("--model", "synthetic", "--synthetic-step-ms", "50", "--max-requests", "64")
