"""The exhaustive search through the core's interleavings, in native/tests/model, and the proof that it finds mistakes.

One test per litmus test of the explorer, per known-bad protocol and per scenario of the core; then every mutation of
mutations.toml that breaks the protocol must make one of the scenarios fail.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import pytest

from tests.transport import mutations

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

SOURCES = [mutations.NATIVE / "tests" / "model" / f"{kind}.cpp" for kind in ("litmus", "controls", "scenarios")]
CASES = [name for source in SOURCES for name in re.findall(r'\{"((?:litmus|control|core): .+?)"', source.read_text())]
BREAKS_PROTOCOL = [mutation for mutation in mutations.load() if mutation.by_model]


def copy_and_build(folder: Path) -> Path:
    """A copy of the native directory to break, with the model check built beside it."""
    shutil.copytree(mutations.NATIVE, folder / "native")
    mutations.MODEL.configure(folder / "native", folder / "build")
    mutations.MODEL.build(folder / "build")
    return folder / "native"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model check of the core as it is."""
    native = copy_and_build(tmp_path_factory.mktemp("unbroken"))
    return native.parent / "build" / mutations.MODEL.target


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """By mutation, what the model check says of the core with it; one mutation per core of this machine at a time."""
    copies: SimpleQueue[Path] = SimpleQueue()

    def try_out(mutation: mutations.Mutation) -> str:
        native = copies.get()
        try:
            with mutation.applied_to(native):
                mutations.MODEL.build(native.parent / "build")
                return mutations.MODEL.complaint(native.parent / "build", "core: ")
        finally:
            copies.put(native)

    num_copies = min(4, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_copies) as pool:
        for native in pool.map(copy_and_build, [tmp_path_factory.mktemp("broken") for _ in range(num_copies)]):
            copies.put(native)
        yield {mutation.name: pool.submit(try_out, mutation) for mutation in BREAKS_PROTOCOL}
        pool.shutdown(cancel_futures=True)  # where only some of the tests are run


def test_every_case_is_run_below(program):
    """The names that were read from the sources are those that the program knows; thorough ones are run by hand."""
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name for name in listed if not name.startswith("thorough: ")] == CASES


@pytest.mark.parametrize("case", CASES)
def test_case(program, case):
    """Every execution of the program is as it must be, or its control has one that is not."""
    done = subprocess.run([program, case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"ok      {case}: " in done.stdout


@pytest.mark.parametrize("mutation", BREAKS_PROTOCOL, ids=lambda one: one.name)
def test_mutation_is_noticed(complaints, mutation):
    """One step of the protocol weakened, reordered or left out makes a scenario of the core fail."""
    assert complaints[mutation.name].result().startswith("FAILED  core: ")
