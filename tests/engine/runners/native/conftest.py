"""Fixtures of the tests of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.runners.native.stored_parts import CONFIGS, make

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The folder of a small llama."""
    make(tmp_path / "llama", CONFIGS["llama"]())
    return tmp_path / "llama"
