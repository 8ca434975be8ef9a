"""The cache folder: entries that appear whole or not at all, made once however many processes ask.

Owns where the cache is, its locks, its unfinished folders and each entry's manifest. Does not know what is in an
entry or how it is made.

An entry NAME is a folder that is built as NAME.partial, and renamed when its files are on the disk. The builder holds
an flock on NAME.lock and passes the descriptor to the child processes that write; the kernel drops the lock when the
last of them has ended. A NAME.partial whose lock is free was left by a killed builder, and is removed. Lock files stay,
because removing one that another process is about to lock would let two builders in.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbee.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rbee.models.progress import Progress

MANIFEST = "rbee.json"
NO_SPACE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class CacheError(ModelError):
    """The cache cannot be used, or is full."""


def cache_folder() -> Path:
    """$RBEE_CACHE, or rbee/models in $XDG_CACHE_HOME or ~/.cache; it may not exist yet.

    Raises:
        CacheError: the path begins with a home folder that there is not.
    """
    own = os.environ.get("RBEE_CACHE")
    path = Path(own or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        path = path.expanduser().absolute()
    except RuntimeError as error:
        raise CacheError(
            f"There is no home folder for the model cache {path}. Set RBEE_CACHE to a folder that can be written."
        ) from error
    return path if own else path / "rbee" / "models"


def file_identity(path: Path) -> list[int]:
    """Size and time of change, by which make too takes a file for unchanged; OSError if there is none."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def is_whole(entry: Path) -> bool:
    """Whether `entry` has a manifest, and every file the size that the manifest lists."""
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        return all((entry / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # missing, or not what write_manifest wrote
        return False


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of `folder`: `facts`, and the sizes of its files."""
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")


def ensure(entry: Path, build: Callable[[Path, int], None], *, progress: Progress) -> None:
    """Return when `entry` is whole; otherwise call `build(folder, lock_fd)` first.

    `build` writes the manifest last, and passes `lock_fd` to child processes that write. One process builds an entry at
    a time; others wait, and build if it failed.

    Raises:
        CacheError: the cache cannot be written.
        Exception: what `build` raises.
    """
    if is_whole(entry):
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(entry.parent)
        with _locked(entry, progress) as lock_fd:
            if not is_whole(entry):  # else another process built it meanwhile
                _build(entry, build, lock_fd)
    except OSError as error:
        if error.errno in NO_SPACE_ERRNOS:
            raise no_space(entry.parent) from error
        raise CacheError(
            f"The model cache {entry.parent} cannot be used: {error.strerror or error}. "
            "Set RBEE_CACHE to a folder that can be written."
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Raise a CacheError unless `needed` bytes are free on the disk of `folder`."""
    if shutil.disk_usage(folder).free < needed:
        raise no_space(folder, needed)


def no_space(folder: Path, needed: int = 0) -> CacheError:
    """The error of a disk that is full or would be; `needed` is in bytes, 0 if unknown."""
    with contextlib.suppress(FileNotFoundError):
        free = shutil.disk_usage(folder).free
        wanted = f"{needed} bytes are needed" if needed else "a file could not be written"
        return CacheError(
            f"There is not enough space in {folder}: {wanted} and {free} are free. "
            "Free some, or set RBEE_CACHE to a folder on another disk."
        )
    return CacheError(f"There is not enough space in {folder}. Free some, or set RBEE_CACHE to another folder.")


def _build(entry: Path, build: Callable[[Path, int], None], lock_fd: int) -> None:
    partial = _beside(entry, ".partial")
    _remove(partial)
    partial.mkdir()
    try:
        build(partial, lock_fd)
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        _remove(entry)  # it is not whole
        partial.rename(entry)
        _sync(entry.parent)
    finally:
        _remove(partial)


@contextlib.contextmanager
def _locked(entry: Path, progress: Progress) -> Iterator[int]:
    with _beside(entry, ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.stage(f"waiting for another process that prepares {entry.name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _remove_abandoned(cache: Path) -> None:
    for partial in cache.glob("*.partial"):
        with partial.with_suffix(".lock").open("ab") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(partial)


def _beside(entry: Path, suffix: str) -> Path:
    return entry.with_name(entry.name + suffix)


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
