"""The exhaustive search through the core's interleavings, in native/tests/model, and the proof that it finds mistakes.

One test per litmus test of the explorer, per known-bad protocol and per scenario of the core; then every mutation of
mutations.toml that breaks the protocol must make one of the scenarios fail.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.transport import mutations

pytestmark = pytest.mark.slow

SOURCES = [mutations.NATIVE / "tests" / "model" / f"{kind}.cpp" for kind in ("litmus", "controls", "scenarios")]
CASES = [name for source in SOURCES for name in re.findall(r'\{"((?:litmus|control|core): .+?)"', source.read_text())]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A copy of the native directory to break, with the model check built beside it."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(mutations.NATIVE, folder / "native")
    mutations.MODEL.configure(folder / "native", folder / "build")
    mutations.MODEL.build(folder / "build")
    return folder / "native"


@pytest.fixture(scope="module")
def program(native):
    """The model check of the core as it is."""
    return shutil.copy(native.parent / "build" / mutations.MODEL.target, native.parent / "unbroken")


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


@pytest.mark.parametrize("mutation", [one for one in mutations.load() if one.by_model], ids=lambda one: one.name)
def test_mutation_is_noticed(native, mutation):
    """One step of the protocol weakened, reordered or left out makes a scenario of the core fail."""
    build = native.parent / "build"
    with mutation.applied_to(native):
        mutations.MODEL.build(build)
        assert mutations.MODEL.complaint(build, "core: ").startswith("FAILED  core: ")
