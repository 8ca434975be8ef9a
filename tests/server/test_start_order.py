"""The engine process starts before the server reads what clients see of the model, and ends if that fails."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from safetensors.numpy import save_file

from rbee.models import synthetic
from tests.models.models_parts import TINY_CONFIG, tiny_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose generation_config.json is a pipe: who reads it waits until something is written."""
    synthetic.tokenizer().save(str(tmp_path / "tokenizer.json"))
    save_file(tiny_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    os.mkfifo(tmp_path / "generation_config.json")
    return tmp_path


def test_the_engine_loads_while_the_server_reads_the_model(folder: Path, start_server: Callable[..., Server]) -> None:
    """The engine has its weights before the server has read everything, and then the server gets ready."""
    with start_server(str(folder), until="listening") as server:
        with (folder / "generation_config.json").open("w") as pipe:  # waits until the server reads
            server.wait_for_log("engine INFO rbee.engine.runners.native.weight_plan: Packed")
            pipe.write("{}")
        server.wait_for("ready")
        assert server.stop() == 0


def test_a_model_that_cannot_be_read_ends_the_engine(folder: Path, start_server: Callable[..., Server]) -> None:
    """With the one sentence on what is wrong, and exit code 2."""
    with start_server(str(folder), until="listening") as server:
        with (folder / "generation_config.json").open("w") as pipe:
            engine = server.engine
            pipe.write("nothing")
        assert server.wait() == 2
        log = server.log.read_text()
    assert not engine.is_running()
    [sentence] = [line for line in log.splitlines() if "rbee: " in line]
    assert sentence.startswith(f"rbee: {folder}/generation_config.json is not valid JSON")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_engine_has_imported_anything(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_server: Callable[..., Server]
) -> None:
    """As Ctrl-C sends it to the whole group: the engine takes no notice, and gets ready, because the server decides."""
    os.mkfifo(tmp_path / "pipe")
    hold = f"import sys\nif 'rbee.engine' in sys.orig_argv: open({str(tmp_path / 'pipe')!r}).read()\n"
    (tmp_path / "sitecustomize.py").write_text(hold)  # Python imports it first of all
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with start_server("--model", "synthetic", until="listening") as server:
        with (tmp_path / "pipe").open("w"):  # waits until the engine reads
            os.kill(server.engine.pid, number)
        server.wait_for("ready")
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_is_read_is_a_shutdown(
    number: signal.Signals, folder: Path, start_server: Callable[..., Server]
) -> None:
    """The server ends with exit code 0 as soon as it has read the model, and so does the engine."""
    with start_server(str(folder), until="listening") as server:
        with (folder / "generation_config.json").open("w") as pipe:
            engine = server.engine
            server.process.send_signal(number)
            pipe.write("{}")
        assert server.wait() == 0
    assert not engine.is_running()
