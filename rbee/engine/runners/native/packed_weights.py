"""Packed weights in memory and on the disk: packed by several threads, kept in the model cache, mapped when there.

Owns the layout of the cache's file, and when an entry is valid or obsolete. Does not know what the weights are for,
nor what decides their formats (`weights`).

An entry holds `weights.bin` and a manifest of what is where in it; the identities of the files that the weights came
from are its key. Matrices come first, in the order of the plan, then the vectors; each begins at a multiple of 64
bytes, the first at the beginning of a page.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rbee.engine import _kernels
from rbee.errors import ModelError
from rbee.models import cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.engine.runners.interface import OnLoading

    Bytes = NDArray[np.uint8]

logger = logging.getLogger(__name__)

# What an entry holds. Counted up when that changes, or the layout of a packed matrix does.
PACK_FORMAT = 1

_FILE = "weights.bin"
_INFIX = ".packed-"
_ALIGNMENT = 64
_STAGE = "packing the weights"
_ROWS_AT_ONCE = 4096  # of a matrix, for a thread; a multiple of a panel's 16


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed matrix."""

    format: int  # how it is packed; see native/kernels/rbee_kernels/weights.h
    rows: int  # outputs
    cols: int  # inputs
    data: Bytes  # uint8, 64-byte aligned


@dataclass(frozen=True, eq=False)
class Weights:
    """All of a model's weights, ready to use.

    Matrices: "embedding", "head" (absent if tied) and "layers.N." with query, key, value, output, gate, up, down.
    Vectors, float32: "final_norm" and "layers.N." with attention_norm, mlp_norm, and where the model has them
    query_norm, key_norm, post_attention_norm, post_mlp_norm, and each matrix' name with _bias.
    """

    matrices: dict[str, Packed]
    vectors: dict[str, NDArray[np.float32]]
    memory: Bytes  # where they all lie, matrices first, in the order in which a step reads them


@dataclass(frozen=True, eq=False)
class MatrixPlan:
    """How a matrix is packed: see `_kernels.pack`."""

    format: int
    rows: int
    cols: int
    source: Bytes
    source_type: int
    row_order: NDArray[np.uint32] | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Matrices to pack, and ready vectors."""

    matrices: dict[str, MatrixPlan]
    vectors: dict[str, NDArray[np.float32]]


def load_or_pack(
    name: str,
    sources: list[Path],
    *,
    facts: str,
    make_plan: Callable[[], Plan],
    on_loading: OnLoading,
    threads: int,
) -> Weights:
    """The cache's weights; packed now if they are not there or damaged.

    Where the cache cannot be used the weights are packed into memory, with a warning. ModelError if the files change
    meanwhile; what `make_plan` raises.

    Args:
        name: of the model, for messages.
        sources: the files they come from.
        facts: all else that packing depends on.
        make_plan: called if weights are packed.
        on_loading: called for each piece.
        threads: that pack; 0 takes one per core this process may use.
    """
    identities = _identities(sources)
    key = hashlib.sha256(json.dumps([PACK_FORMAT, facts, identities]).encode()).hexdigest()[:16]
    entry = cache.cache_folder() / f"{name[:64]}{_INFIX}{key}"

    def build(folder: Path, lock_fd: int) -> None:  # noqa: ARG001 - no child process needs the lock
        plan = make_plan()
        layout = _Layout.of(plan)
        _fill(_new_file(folder / _FILE, layout.size), plan, layout, on_loading, threads)
        if _identities(sources) != identities:
            raise ModelError(f"The weights of the model {name} were changed while they were being packed. Start again.")
        table = {"matrices": layout.matrices, "vectors": layout.vectors}
        cache.write_manifest(folder, {"format": PACK_FORMAT, "name": name, "sources": identities, **table})
        _remove_useless(entry.parent)

    try:
        cache.ensure(entry, build, progress=_Stages(on_loading), is_good=_is_good)
        if weights := _map(entry):
            return weights
        logger.warning("The packed weights in %s were removed while they were being opened.", entry)
    except cache.CacheError as error:
        logger.warning("Packed weights are not kept, and packed at every start: %s", error)
    plan = make_plan()
    layout = _Layout.of(plan)
    memory = _fill(mmap.mmap(-1, layout.size), plan, layout, on_loading, threads)
    return layout.weights(memory)


@dataclass(frozen=True)
class _Layout:
    """Where each matrix and vector is. `weights()` raises LookupError, TypeError or ValueError if that does not fit."""

    matrices: dict[str, list[int]]  # format, rows, cols, offset
    vectors: dict[str, list[int]]  # offset, length
    size: int

    @classmethod
    def of(cls, plan: Plan) -> _Layout:
        matrices, vectors, end = {}, {}, 0
        for name, matrix in plan.matrices.items():
            matrices[name] = [matrix.format, matrix.rows, matrix.cols, end]
            end = _aligned(end + _kernels.packed_bytes(matrix.format, matrix.rows, matrix.cols))
        for name, vector in plan.vectors.items():
            vectors[name] = [end, len(vector)]
            end = _aligned(end + vector.nbytes)
        return cls(matrices, vectors, end)

    def weights(self, memory: Bytes) -> Weights:
        """Views of `memory`."""
        matrices, vectors = {}, {}
        for name, (form, rows, cols, offset) in self.matrices.items():
            data = _span(memory, offset, _kernels.packed_bytes(form, rows, cols))
            matrices[name] = Packed(form, rows, cols, data)
        for name, (offset, length) in self.vectors.items():
            vectors[name] = _span(memory, offset, 4 * length).view(np.float32)
        return Weights(matrices, vectors, memory)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _span(memory: Bytes, offset: int, size: int) -> Bytes:
    if offset % _ALIGNMENT or not 0 <= offset <= offset + size <= len(memory):
        raise ValueError(offset)
    return memory[offset : offset + size]


def _map(entry: Path) -> Weights | None:
    """The weights of an entry, read-only; None if it is not there or not as `load_or_pack` leaves it."""
    try:
        manifest = json.loads((entry / cache.MANIFEST).read_bytes())
        memory = map_file(entry / _FILE)
        return _Layout(manifest["matrices"], manifest["vectors"], len(memory)).weights(memory)
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return None


def _is_good(entry: Path) -> bool:
    return cache.is_whole(entry) and _map(entry) is not None


def map_file(path: Path) -> Bytes:
    """The bytes of a file, read-only, read on first use; OSError if it cannot be read, ValueError if it is empty."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _new_file(path: Path, size: int) -> mmap.mmap:
    """Create and map a file of `size` bytes, its blocks reserved: a full disk raises OSError now, no signal later."""
    with path.open("xb+") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return mmap.mmap(file.fileno(), size)


def _fill(target: mmap.mmap, plan: Plan, layout: _Layout, on_loading: OnLoading, threads: int) -> Bytes:
    """Pack the plan into `target`; returns its bytes."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - rare, and a start is short

    memory = np.frombuffer(target, np.uint8)
    packed = layout.weights(memory)
    for name, vector in plan.vectors.items():
        packed.vectors[name][:] = vector

    def pack(name: str, first_row: int) -> None:
        matrix = plan.matrices[name]
        _kernels.pack(
            matrix.source,
            matrix.source_type,
            matrix.rows,
            matrix.cols,
            format=matrix.format,
            row_order=matrix.row_order,
            packed=packed.matrices[name].data,
            first_row=first_row,
            end_row=min(first_row + _ROWS_AT_ONCE, matrix.rows),
        )

    pieces = [(name, row) for name, matrix in plan.matrices.items() for row in range(0, matrix.rows, _ROWS_AT_ONCE)]
    on_loading(_STAGE, 0, len(pieces))
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for done, _ in enumerate(pool.map(lambda piece: pack(*piece), pieces), 1):
            on_loading(_STAGE, done, len(pieces))
    return memory


def _remove_useless(folder: Path) -> None:
    """Remove packed weights that no start will use again. A process that has them mapped keeps them."""
    for entry in folder.glob(f"*{_INFIX}*"):
        if _is_useless(entry):
            shutil.rmtree(entry, ignore_errors=True)


def _is_useless(entry: Path) -> bool:
    """Whether it is of an older format, or a file that it was made from is gone or has changed."""
    try:
        manifest = json.loads((entry / cache.MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False  # a lock file, or an entry that a process builds now
    try:
        changed = any(cache.file_identity(Path(path)) != known for path, known in manifest["sources"].items())
        return changed or manifest["format"] < PACK_FORMAT
    except FileNotFoundError:
        return True
    except (OSError, LookupError, TypeError, AttributeError):
        return False


def _identities(paths: list[Path]) -> dict[str, list[int]]:
    return {str(path): cache.file_identity(path) for path in map(Path.resolve, paths)}


class _Stages:
    """A `rbee.models.Progress` for the cache, on top of the engine's."""

    def __init__(self, on_loading: OnLoading) -> None:
        self._on_loading = on_loading

    def stage(self, name: str, total: int = 0) -> None:  # noqa: ARG002 - of bytes; the engine counts parts
        self._on_loading(name, 0, 1)

    def done(self, amount: int) -> None:
        pass  # nothing here is counted in bytes

    def note(self, text: str) -> None:
        logger.info("%s", text)
