"""A tensor as it lies in a file, whichever format the file has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and how it is written; the file has all of its bytes."""

    type: str  # safetensors' dtype or ggml's type: "F32", "BF16", "Q4_1" ...
    shape: tuple[int, ...]  # outermost dimension first
    offset: int  # bytes from the start of the file
    size: int  # bytes


class PlacedTensor(NamedTuple):
    """A tensor in one of a model's files."""

    path: Path
    stored: StoredTensor
