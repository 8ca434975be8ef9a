"""Packed weights, kept in the cache and found again."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rbee.errors import ModelError
from tests.engine.runners.native.stored_parts import (
    CONFIGS,
    F32,
    Q4,
    Q8,
    assert_same,
    entries,
    make,
    rewrite,
)
from tests.engine.runners.native.weights_parts import load, unpacked


def test_a_second_start_maps_what_the_first_has_packed(llama, cache, reports):
    """Nothing is packed or told, and the weights are the file's pages, aligned for the kernels."""
    first = load(llama, quantize="q8", on_loading=reports)
    assert reports[0] == ("packing the weights", 0, 16)
    (entry,) = entries(cache)
    assert entry.name.startswith("llama.packed-")
    before = (entry / "weights.bin").stat()
    reports.clear()
    second = load(llama, quantize="q8", on_loading=reports)
    assert reports == []
    assert (entry / "weights.bin").stat().st_mtime_ns == before.st_mtime_ns
    assert_same(unpacked(second), unpacked(first))
    assert list(second.matrices) == list(first.matrices)
    for weights in (first, second):
        assert not weights.memory.flags.writeable
        assert weights.memory.ctypes.data % 4096 == 0
        views = [matrix.data for matrix in weights.matrices.values()] + list(weights.vectors.values())
        assert all(view.ctypes.data % 64 == 0 for view in views)
        assert all(np.shares_memory(view, weights.memory) for view in views)
    assert str(entry / "weights.bin") in Path("/proc/self/maps").read_text()


def test_matrices_lie_in_the_order_in_which_a_step_reads_them(llama, cache):
    """Layer after layer; the head is behind the last one."""
    weights = load(llama)
    at = [matrix.data.ctypes.data for matrix in weights.matrices.values()]
    assert at == sorted(at)
    layer = ["query", "key", "value", "output", "gate", "up", "down"]
    order = [f"layers.{number}.{part}" for number in range(2) for part in layer]
    assert list(weights.matrices) == [*order, "embedding", "head"]
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: os.truncate(entry / "weights.bin", 5000),
        lambda entry: (entry / "weights.bin").unlink(),
        lambda entry: (entry / "weights.bin").write_bytes(b""),
        lambda entry: (entry / "rbee.json").write_text("{"),
        lambda entry: (entry / "rbee.json").unlink(),
        lambda entry: edit(entry, lambda manifest: manifest.pop("matrices")),
        lambda entry: edit(entry, lambda manifest: manifest["matrices"].update({"head": [F32, 70, 64, 1 << 40]})),
        lambda entry: edit(entry, lambda manifest: manifest["matrices"].update({"head": [F32, 70, 64, 8]})),
        lambda entry: edit(entry, lambda manifest: manifest["matrices"].update({"head": [99, 70, 64, 0]})),
        lambda entry: edit(entry, lambda manifest: manifest["vectors"].update({"final_norm": ["a", "b"]})),
    ],
    ids=["cut", "gone", "empty", "no json", "no manifest", "no table", "outside", "unaligned", "unknown", "no numbers"],
)
def test_damaged_packed_weights_are_packed_anew(damage, llama, cache, reports):
    """Whatever was done to the entry, the next start has the right weights and a whole entry."""
    first = {name: tensor.copy() for name, tensor in unpacked(load(llama)).items()}  # before its file is cut
    (entry,) = entries(cache)
    damage(entry)
    assert_same(unpacked(load(llama, on_loading=reports)), first)
    assert reports
    reports.clear()
    load(llama, on_loading=reports)
    assert reports == []
    assert entries(cache) == [entry]


def edit(entry, change):
    """Change an entry's manifest."""
    manifest = json.loads((entry / "rbee.json").read_text())
    change(manifest)
    (entry / "rbee.json").write_text(json.dumps(manifest))


def test_weights_that_changed_are_packed_anew_and_the_old_ones_removed(llama, cache):
    """A file of the same size with another time of change is another file, and the old one's weights are of no use."""
    load(llama)
    (before,) = entries(cache)
    rewrite(llama, lambda tensors: tensors.update({"model.norm.weight": np.full(64, 7, np.float32)}))
    assert (load(llama).vectors["final_norm"] == 7).all()
    (after,) = entries(cache)
    assert after != before


def test_each_quantize_has_packed_weights_of_its_own(llama, cache):
    """A user who goes back and forth packs once each."""
    formats = [load(llama, quantize=quantize).matrices["layers.0.up"].format for quantize in ("none", "q4", "q8", "q4")]
    assert formats == [F32, Q4, Q8, Q4]
    assert len(entries(cache)) == 3


def test_weights_whose_files_are_gone_are_removed_by_the_next_packing(tmp_path, cache):
    """A model that was deleted does not leave its packed weights behind for good; older formats go too."""
    for name in ("first", "second", "third"):
        make(tmp_path / name, CONFIGS["qwen2"]())
    load(tmp_path / "first")
    (tmp_path / "first" / "model.safetensors").unlink()
    load(tmp_path / "second")
    (second,) = entries(cache)
    assert second.name.startswith("second")
    edit(second, lambda manifest: manifest.update(format=0))
    load(tmp_path / "third")
    assert [entry.name[:5] for entry in entries(cache)] == ["third"]


@pytest.mark.usefixtures("cache")
def test_mapped_weights_outlive_their_entry(llama):
    """An engine that runs keeps its weights when another one removes them."""
    weights = load(llama)
    before = unpacked(weights)
    rewrite(llama, lambda tensors: tensors.update({"model.norm.weight": np.full(64, 7, np.float32)}))
    load(llama)
    assert_same(unpacked(weights), before)


def test_a_cache_that_cannot_be_used_is_done_without(llama, tmp_path, monkeypatch, caplog):
    """A warning says why; the weights are packed into memory."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        weights = load(llama)
    (record,) = caplog.records
    assert "Packed weights are not kept, and packed at every start: The model cache" in record.getMessage()
    tensors = load_file(llama / "model.safetensors")
    np.testing.assert_array_equal(unpacked(weights)["head"], tensors["lm_head.weight"])


def test_a_file_has_its_blocks_before_anything_is_packed_into_it(llama, cache):
    """A disk that is full is an error then; later it would be a signal that ends the process."""
    reserved = []

    def look(*_):
        (file,) = cache.glob("*.partial/weights.bin")
        reserved.append(file.stat().st_blocks * 512 >= file.stat().st_size > 0)

    load(llama, on_loading=look)
    assert reserved[0]


def test_a_full_disk_is_done_without(llama, cache):
    """A file that may not grow is no reason not to serve: the weights are packed into memory, and a line says so."""
    program = """
import resource, sys, logging
from pathlib import Path
from tests.engine.runners.native.weights_parts import load
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
print(len(load(Path(sys.argv[1])).matrices))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[4]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program, llama], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "16\n", done.stderr
    assert f"packed at every start: There is not enough space in {cache}" in done.stderr
    assert entries(cache) == []


def test_a_file_that_changes_while_it_is_packed_is_refused(llama, cache):
    """What is kept under a file's time of change is what it had then."""
    path = llama / "model.safetensors"
    with pytest.raises(ModelError, match=r"of the model llama were changed while they were being packed\. Start again"):
        load(llama, on_loading=lambda *_: os.utime(path, ns=(1, 1)))
    assert entries(cache) == []


def test_two_processes_at_once_pack_once(llama, cache):
    """The second one waits for the first and maps what it has made."""
    program = """
import sys
from pathlib import Path
from tests.engine.runners.native.weights_parts import load
reports = []
sys.stdin.read(1)
weights = load(Path(sys.argv[1]), on_loading=lambda *report: reports.append(report[0]))
print("packed" if "packing the weights" in reports else "mapped", len(weights.matrices))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[4]), *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, llama],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.write("x")
        process.stdin.flush()
    assert sorted(process.communicate()[0] for process in processes) == ["mapped 16\n", "packed 16\n"]
    assert len(entries(cache)) == 1


def test_loading_imports_nothing_heavy(llama, cache):
    """Neither torch nor transformers nor gguf: an engine is to be ready within a second."""
    program = """
import sys, json
from pathlib import Path
from rbee.engine.runners.native.spec import read_spec
from rbee.engine.runners.native.weights import load_weights
folder = Path(sys.argv[1])
spec = read_spec(json.loads((folder / "config.json").read_text()))
load_weights(spec, folder, quantize="none", on_loading=lambda *_: None)
print(sorted({"torch", "transformers", "gguf", "safetensors", "tokenizers"} & set(sys.modules)))
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, llama], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
    assert len(entries(cache)) == 1
