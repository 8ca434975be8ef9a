"""What the process that compiles in the background leaves when it is not waited for, or fails."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.server.server_parts import PATIENCE
from tests.transport.compiled import Compiling

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary files of this process are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_is_not_done_is_ended_and_leaves_nothing(folder):
    """As where pytest ends at the first failure: no process, and no file, also not of a compiler that is killed."""
    compiling = Compiling(["address"])
    deadline = time.monotonic() + PATIENCE
    while not (started := psutil.Process(compiling.pid).children(recursive=True)):
        assert time.monotonic() < deadline
    assert started[0].environ()["TMPDIR"].startswith(str(folder))
    compiling.close()
    assert psutil.wait_procs(started, PATIENCE)[1] == []
    assert list(folder.iterdir()) == []


def test_what_did_not_come_about_fails_the_test_that_asks(folder):
    """With all that was said."""
    compiling = Compiling(["no such job"])
    try:
        with pytest.raises(AssertionError):
            compiling.result("address")
    finally:
        compiling.close()
    assert list(folder.iterdir()) == []
