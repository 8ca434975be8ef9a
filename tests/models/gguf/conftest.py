"""Fixtures for the tests of rbee.models.gguf."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.models.gguf.vocabularies import fetch_vocabularies

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def vocabularies() -> Path:
    """llama.cpp's vocabulary files, in the user's own cache: fetched by the first run, found by the later ones."""
    return fetch_vocabularies()
