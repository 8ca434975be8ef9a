"""GGUF files with damage in their headers, on the whole way from the file to packed weights."""

from __future__ import annotations

import contextlib
import random

import pytest

from rbee.engine.runners.interface import Unsupported
from rbee.errors import ModelError
from rbee.models import prepare
from rbee.models.gguf import open_gguf
from tests.engine.runners.native.weights_parts import load
from tests.models.models_parts import RecordingProgress, write_tiny_gguf

DAMAGED = 500


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A GGUF file, with a cache folder beside it."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def start(path):
    """What a start does with the file up to its first step."""
    folder = prepare(str(path), progress=RecordingProgress()).path
    return len(load(folder).matrices)


def test_damaged_headers_are_served_or_refused(tiny, tmp_path):
    """Each of 500 files is a model, refused by a sentence, or left to another runner; nothing else is raised."""
    whole = tiny.read_bytes()
    data_starts = min(placed.stored.offset for placed in open_gguf(tiny).tensors.values())
    assert start(tiny) == 15
    pick = random.Random(12)
    served = 0
    for number in range(DAMAGED):
        damaged = bytearray(whole)
        for _ in range(pick.randint(1, 3)):
            at = pick.randrange(data_starts)
            damaged[at] = pick.choice([0, 1, 0x7F, 0xFF, damaged[at] ^ 1 << pick.randrange(8)])
        path = tmp_path / f"damaged-{number}.gguf"
        path.write_bytes(damaged)
        with contextlib.suppress(ModelError, Unsupported):
            served += start(path) > 0
        path.unlink()
    assert 0 < served < DAMAGED / 2
