"""llama.cpp's vocabularies (ggml-vocab-*.gguf and their token files), out of the source package of llama-cpp-python.

They are fetched once, into the cache folder, by pip with the user's index. pip would run the package's build backend to
learn its name; it gets one that only says the name, so that no code of the package runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

from rbee.models import cache
from rbee.models.progress import ConsoleProgress

if TYPE_CHECKING:
    from pathlib import Path

_NAME, _VERSION = "llama_cpp_python", "0.3.36"
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_MEMBER = re.compile(r".*/llama\.cpp/models/(ggml-vocab-[^/]+)")

_BACKEND = f"""
from pathlib import Path

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = Path(metadata_directory, "{_NAME}-{_VERSION}.dist-info")
    folder.mkdir()
    folder.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: {_NAME}\\nVersion: {_VERSION}\\n")
    return folder.name
"""


def fetch_vocabularies() -> Path:
    """The folder with the files; 76 MB are downloaded if it is not there."""
    folder = cache.cache_folder() / f"{_NAME}-{_VERSION}-vocabularies"
    with ConsoleProgress() as progress:
        cache.ensure(folder, _build, progress=progress)
    return folder


def _build(folder: Path, lock_fd: int) -> None:
    work = folder / "work"
    backend = work / "scikit_build_core"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(_BACKEND, encoding="utf-8")
    requirements = work / "requirements.txt"
    requirements.write_text(f"{_NAME}=={_VERSION} --hash=sha256:{_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes", "--no-input", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", work, "--requirement", requirements],
        env=os.environ | {"PYTHONPATH": str(work), "TMPDIR": str(work)},
        pass_fds=(lock_fd,),
        check=True,
    )
    [archive] = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            match = _MEMBER.fullmatch(member.name)
            content = tar.extractfile(member) if match else None
            if match and content is not None:
                (folder / match[1]).write_bytes(content.read())
    shutil.rmtree(work)
    cache.write_manifest(folder, {"sha256": _SHA256})
