"""Fixtures of the tests with the real Prometheus."""

from __future__ import annotations

import pytest

from tests.deploy.prometheus_parts import Programs


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Prometheus and promtool."""
    return Programs.installed()
