"""What becomes of a model's stored weights, and the work itself: packed from their mapped files into memory.

Owns the pieces in which that happens, its progress, and the files' pages, which are dropped behind. Does not know what
the weights are for, nor what decides their formats (`weights`).
"""

from __future__ import annotations

import logging
import mmap
import time
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import _kernels
from rbee.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from rbee.engine.runners.interface import OnLoading
    from rbee.transport import Progress

    Bytes = NDArray[np.uint8]

logger = logging.getLogger(__name__)

_MB = 1_000_000
_PIECE = 32 * _MB  # of the files, after which progress is reported and pages are dropped


class MappedFile:
    """The bytes of a file, read on first use; OSError if it cannot be read, ValueError if it is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._identity = self._now()
        self.data: Bytes = np.frombuffer(self._map, np.uint8)

    def drop_pages(self) -> None:
        """Give the memory of what has been read back; the kernel may keep it in its cache."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def check_unchanged(self) -> None:
        """Raise ModelError if the file was replaced or written to since it was mapped."""
        if self._now() != self._identity:
            raise ModelError(f"The weights file {self.path} was changed while it was being read. Start again.")

    def _now(self) -> tuple[int, int, int]:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True, eq=False)
class MatrixPlan:
    """How a matrix is packed: see `_kernels.pack`."""

    format: int
    rows: int
    cols: int
    source: Bytes
    source_type: int
    row_order: NDArray[np.uint32] | None

    @property
    def packed_bytes(self) -> int:
        return _kernels.packed_bytes(self.format, self.rows, self.cols)


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """All of a model's weights: matrices to pack, ready vectors, and the files that they are read from.

    Matrices: "embedding", "head" (absent if tied) and "layers.N." with query, key, value, output, gate, up, down.
    Vectors, float32: "final_norm" and "layers.N." with attention_norm, mlp_norm, and where the model has them
    query_norm, key_norm, post_attention_norm, post_mlp_norm, and each matrix' name with _bias.
    """

    matrices: dict[str, MatrixPlan]
    vectors: dict[str, NDArray[np.float32]]
    files: tuple[MappedFile, ...]
    has_head: bool = True  # False: what the embedding gives in place of a head means nothing

    def layer_ends(self) -> list[int]:
        """How many bytes of the sources have been packed when each layer has been: layers come first, in order."""
        sizes: dict[int, int] = {}
        for name, matrix in self.matrices.items():
            kind, _, rest = name.partition(".")
            if kind == "layers":
                layer = int(rest.partition(".")[0])
                sizes[layer] = sizes.get(layer, 0) + matrix.source.nbytes
        return list(accumulate(size for _, size in sorted(sizes.items())))

    @property
    def packed_bytes(self) -> int:
        """Memory that the weights take."""
        matrices = sum(matrix.packed_bytes for matrix in self.matrices.values())
        return matrices + sum(vector.nbytes for vector in self.vectors.values())


def pack(
    weights: _kernels.Weights,
    plan: WeightPlan,
    pool: _kernels.ThreadPool,
    *,
    on_loading: OnLoading,
    progress: Progress | None,
) -> None:
    """Pack all of `weights`, which were made of `plan`.

    `on_loading` gets megabytes of the files, done and in all, and the layers that are packed, which come one by one.

    ModelError: a file changed meanwhile.
    """
    total, done, started = weights.source_bytes, 0, time.monotonic()
    layer_ends = plan.layer_ends()
    while done < total:
        layers = bisect_right(layer_ends, done)
        on_loading("packing the weights, in MB", done // _MB, -(-total // _MB), layers, len(layer_ends))
        done = weights.pack(_PIECE, pool, progress)
        for file in plan.files:
            file.drop_pages()
    for file in plan.files:
        file.check_unchanged()
    seconds = time.monotonic() - started
    logger.info("Packed %.0f MB of weights in %.2f s, %.0f MB/s.", total / _MB, seconds, total / _MB / seconds)
