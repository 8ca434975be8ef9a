"""The exhaustive search through the core's interleavings, in native/tests/model, and the proof that it finds mistakes.

One test per litmus test of the explorer, per known-bad protocol and per scenario of the core; then every mutation of
mutations.toml that breaks the protocol must make one of the scenarios fail.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.transport import mutations
from tests.transport.compiled import copy_and_build

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

SOURCES = [mutations.NATIVE / "tests" / "model" / f"{kind}.cpp" for kind in ("litmus", "controls", "scenarios")]
CASES = [name for source in SOURCES for name in re.findall(r'\{"((?:litmus|control|core): .+?)"', source.read_text())]
BREAKS_PROTOCOL = [mutation for mutation in mutations.load() if mutation.by_model]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model check of the core as it is."""
    native = copy_and_build(tmp_path_factory.mktemp("unbroken"))
    return native.parent / "build" / mutations.MODEL.target


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
@pytest.mark.compiled("mutations")
def test_mutation_is_noticed(compiled, mutation):
    """One step of the protocol weakened, reordered or left out makes a scenario of the core fail."""
    assert compiled[mutation.name].startswith("FAILED  core: ")
