"""A tensor as it lies in a file, whichever format the file has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and how it is written; the file has all of its bytes.

    Attributes:
        type: safetensors' dtype or ggml's type: "F32", "F16", "BF16", "Q4_1" ...
        shape: outermost dimension first.
        offset, size: in bytes, from the start of the file.
    """

    type: str
    shape: tuple[int, ...]
    offset: int
    size: int
