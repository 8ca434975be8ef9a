"""Weights packed from their mapped files into memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.engine import _kernels  # noqa: TID251 - what is packed
from rbee.engine.runners.native.spec import read_spec
from rbee.engine.runners.native.weight_plan import MappedFile, pack
from rbee.engine.runners.native.weights import plan_weights
from rbee.errors import ModelError
from tests.engine.runners.native.native_parts import minimal_arguments, minimal_shape
from tests.engine.runners.tiny_models import load_native

ONE_MIB = 1 << 20


def plan_of(folder, quantize="none"):
    """The plan of a model in a folder."""
    return plan_weights(read_spec(json.loads((folder / "config.json").read_text())), folder, quantize=quantize)


def resident(path):
    """Bytes of the file that are mapped into this process and in memory."""
    total, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapped = line.endswith(str(path))
        elif mapped and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_a_plan_is_in_the_order_in_which_a_step_reads(llama):
    """Layer after layer; the head is behind the last one. What it takes in memory is known before it is there."""
    plan = plan_of(llama)
    layer = ["query", "key", "value", "output", "gate", "up", "down"]
    order = [f"layers.{number}.{part}" for number in range(2) for part in layer]
    assert list(plan.matrices) == [*order, "embedding", "head"]
    panels = sum(-(-matrix.rows // 16) * 16 * matrix.cols for matrix in plan.matrices.values())
    assert plan.packed_bytes == 4 * (panels + sum(vector.size for vector in plan.vectors.values()))


def test_a_load_keeps_nothing_on_the_disk(llama, tmp_path, monkeypatch):
    """Weights are packed at every start, into memory alone."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    load_native(llama, quantize="q8")
    assert not (tmp_path / "cache").exists()
    assert str(llama) not in Path("/proc/self/maps").read_text()


def test_the_pages_of_a_file_are_given_back(tmp_path):
    """What has been read takes no memory of this process any more, and is read again when it is asked for."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 4096)
    file = MappedFile(path)
    assert file.data.sum() == 4096 * sum(range(256))
    assert resident(path) == ONE_MIB
    file.drop_pages()
    assert resident(path) == 0
    assert file.data[-1] == 255


def test_layers_are_counted_as_their_weights_are_packed(llama):
    """Layers come before all else in the order in which weights are packed; the last bytes belong to none."""
    plan = plan_of(llama)
    ends = plan.layer_ends()
    assert len(ends) == 2
    assert 0 < ends[0] == ends[1] - ends[0]
    others = sum(plan.matrices[name].source.nbytes for name in plan.matrices if not name.startswith("layers."))
    assert ends[-1] + others == sum(matrix.source.nbytes for matrix in plan.matrices.values())


@pytest.mark.parametrize("change", ["touched", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_packed_is_refused(change, llama):
    """Weights of two versions are no model."""
    path = llama / "model.safetensors"
    plan = plan_of(llama)

    def disturb(*_):
        match change:
            case "touched":
                os.utime(path, ns=(1, 1))
            case "replaced":
                (llama / "other").write_bytes(path.read_bytes())
                (llama / "other").rename(path)
            case _:
                path.unlink()

    weights = _kernels.Weights(minimal_shape(), **{k: v for k, v in minimal_arguments().items() if k != "shape"})
    with pytest.raises(ModelError, match=r"model\.safetensors was changed while it was being read\. Start again"):
        pack(weights, plan, _kernels.ThreadPool(1), on_loading=disturb, progress=None)


def test_loading_imports_nothing_heavy(llama):
    """Neither torch nor transformers nor gguf: an engine is to be ready within a second."""
    program = """
import sys
from pathlib import Path
from rbee.config import EngineConfig
from rbee.engine.runners import choice
runner = choice.load(EngineConfig(model=sys.argv[1], kv_cache_mib=1), lambda *_: None)
print(runner.name, sorted({"torch", "transformers", "gguf", "safetensors", "tokenizers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program, llama], capture_output=True, text=True, check=True)
    assert done.stdout == "native []\n"
