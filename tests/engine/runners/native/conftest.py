"""Fixtures of the tests of weights."""

from __future__ import annotations

import pytest

from tests.engine.runners.native.stored_parts import (
    CONFIGS,
    make,
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RBEE_CACHE", str(folder))
    return folder


@pytest.fixture
def reports():
    """What a load has told; the list is also its `progress`."""

    class Reports(list):
        def __call__(self, *report):
            self.append(report)

    return Reports()


@pytest.fixture
def llama(tmp_path):
    """The folder of a small llama."""
    make(tmp_path / "llama", CONFIGS["llama"]())
    return tmp_path / "llama"
