"""Fixtures for the tests of rbee.models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rbee.config import DEFAULT_MODEL
from rbee.models import ModelFolder, prepare
from tests.models.models_parts import RecordingProgress, write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def progress() -> RecordingProgress:
    """A recording Progress."""
    return RecordingProgress()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that this test, and the processes it starts, use."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RBEE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a random two-layer Llama with a byte-level BPE vocabulary; do not change it."""
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def prepared_tiny(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, RecordingProgress]:
    """The tiny GGUF prepared in a cache of its own, and the progress of it; do not change the folder."""
    said = RecordingProgress()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBEE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return prepare(str(tiny_gguf), progress=said), said


@pytest.fixture(scope="session")
def default_model() -> ModelFolder:
    """The default model in the user's own cache: fetched by the first run, found by the later ones."""
    return prepare(DEFAULT_MODEL, progress=RecordingProgress())
