"""A short name for what a model computes with: its configuration, its tokenizer and its weights.

Owns which files and which parts of them count. The weights are sampled, not read: a digest of gigabytes would delay
every start. Does not know formats.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from rbee.models.gguf.names import shards_of
from rbee.models.prepare import gguf_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WHOLE = ("config.json", "tokenizer.json")
_HEAD = 64 * 1024  # bytes that are read of the beginning of a file of weights: names and shapes of tensors
_SAMPLE = 4096  # bytes of a sample
_SAMPLES = 64  # of a file of weights, evenly spaced


def model_digest(folder: Path) -> str:
    """The digest of a model that is ready to serve, as hexadecimal digits; it does not depend on where the files are.

    Files that cannot be read count as absent: who loads them has a better word for that.
    """
    digest = hashlib.sha256()
    for name in _WHOLE:
        digest.update(_content(folder / name))
    for path in _weights(folder):
        for part in _samples(path):
            digest.update(part)
    return digest.hexdigest()


def _weights(folder: Path) -> tuple[Path, ...]:
    gguf = gguf_of(folder)
    return tuple(sorted(folder.glob("*.safetensors"))) if gguf is None else shards_of(gguf)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _samples(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            yield b"%d," % size
            file.seek(0)
            yield file.read(_HEAD)
            for number in range(_SAMPLES):
                file.seek(size * number // _SAMPLES)
                yield file.read(_SAMPLE)
    except OSError:
        return
