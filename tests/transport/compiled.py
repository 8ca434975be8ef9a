"""What compilers take long for, done while other tests run: the core's own tests, and mutations of its protocol.

A program: `python -m tests.transport.compiled FOLDER NAME...` does these jobs one after the other, on what others leave
of the processors, and writes what came of each to FOLDER/NAME.json. Owns the jobs and their process. Does not know what
must come of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from rbee.child import die_with_parent
from tests.transport import mutations
from tests.transport.mutations import ADDRESS, ENVIRONMENT, MODEL, NATIVE, STRESS, THREAD, Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def copy_and_build(folder: Path) -> Path:
    """A copy of the native directory to break, with the model check built beside it."""
    shutil.copytree(NATIVE, folder / "native")
    MODEL.configure(folder / "native", folder / "build")
    MODEL.build(folder / "build")
    return folder / "native"


def _outputs(check: Check, folder: Path) -> dict[str, tuple[int, str]]:
    """By program, its exit code and all that it says; all of them run at once."""
    check.configure(NATIVE, folder)
    check.build(folder)
    with contextlib.ExitStack() as ending:
        running = {}
        for target in check.targets:
            command: list[str | Path] = [*mutations.without_address_randomisation(), folder / target]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
            )
            running[target] = ending.enter_context(process)
            ending.callback(process.kill)
        said = {target: process.communicate()[0] for target, process in running.items()}
        return {target: (process.returncode, said[target]) for target, process in running.items()}


def _program(check: Check, folder: Path) -> str:
    """The path of the first, which is built and not run."""
    check.configure(NATIVE, folder)
    check.build(folder)
    return str(folder / check.target)


def _complaints(folder: Path) -> dict[str, str]:
    """By mutation, what the model check says of the core with it; one mutation per core of this machine at a time."""
    copies: SimpleQueue[Path] = SimpleQueue()

    def try_out(mutation: mutations.Mutation) -> str:
        native = copies.get()
        try:
            with mutation.applied_to(native):
                MODEL.build(native.parent / "build")
                return MODEL.complaint(native.parent / "build", "core: ")
        finally:
            copies.put(native)

    num_copies = min(4, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_copies) as pool:
        for native in pool.map(copy_and_build, [folder / str(number) for number in range(num_copies)]):
            copies.put(native)
        broken = [mutation for mutation in mutations.load() if mutation.by_model]
        return dict(zip([mutation.name for mutation in broken], pool.map(try_out, broken), strict=True))


JOBS: dict[str, Callable[[Path], Any]] = {
    "address": partial(_outputs, ADDRESS),
    "thread": partial(_outputs, THREAD),
    "stress": partial(_program, STRESS),
    "mutations": _complaints,
}


class Compiling:
    """The process that does the jobs of these names, as the tests see it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rbee-compiled-"))
        command = [sys.executable, "-m", "tests.transport.compiled", str(self._folder), *names]
        environment = os.environ | {"TMPDIR": str(self._folder)}  # a compiler that is killed leaves its files there
        # In a group of its own, to be ended as a whole; not in a session, which may get a fair share of the processors.
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=NATIVE.parent,
                env=environment,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """Of this process."""
        return self._process.pid

    def result(self, name: str) -> Any:
        """What came of a job, once all are done."""
        self._process.wait()
        path = self._folder / f"{name}.json"
        assert path.exists(), (self._folder / "log").read_text()
        return json.loads(path.read_text())

    def close(self) -> None:
        """End what is not done."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder)


def main(folder: Path, names: list[str]) -> None:
    """Do these jobs."""
    die_with_parent(os.getppid())
    os.nice(19)
    for name, job in JOBS.items():
        if name in names:
            (folder / name).mkdir()
            (folder / f"{name}.json").write_text(json.dumps(job(folder / name)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
