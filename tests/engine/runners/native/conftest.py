"""Fixtures of the tests of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.runners.native.stored_parts import CONFIGS, make

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RBEE_CACHE", str(folder))
    return folder


class Reports(list[tuple[object, ...]]):
    """What a load has told; the list is also its `progress`."""

    def __call__(self, *report: object) -> None:
        self.append(report)


@pytest.fixture
def reports() -> Reports:
    """Nothing yet."""
    return Reports()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The folder of a small llama."""
    make(tmp_path / "llama", CONFIGS["llama"]())
    return tmp_path / "llama"
