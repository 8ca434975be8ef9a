"""Weights from safetensors and GGUF files, packed, kept and found again."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file, save_file

from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.weights import FORMAT_NAMES
from rbee.errors import ModelError
from rbee.models import gguf_of
from tests.engine.runners.native.weights_parts import expected, gguf_name, load, unpacked, write_gguf

F32, F16, BF16, Q4, Q4_WIDE, Q8, Q8_MIN, Q8_FINE = range(8)  # of weights.h
SMALL: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama, tied and biased": lambda: transformers.LlamaConfig(
        **SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "mistral": lambda: transformers.MistralConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SMALL, attention_bias=True),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RBEE_CACHE", str(folder))
    return folder


@pytest.fixture
def reports():
    """What a load has told; the list is also its `progress`."""

    class Reports(list):
        def __call__(self, *report):
            self.append(report)

    return Reports()


def make(folder, config, **options):
    """A random model of this config in the folder."""
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder, **options)
    return model


@pytest.fixture
def llama(tmp_path):
    """The folder of a small llama."""
    make(tmp_path / "llama", CONFIGS["llama"]())
    return tmp_path / "llama"


def rewrite(folder, change):
    """Change the tensors of the one safetensors file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def assert_same(ours, theirs):
    """The same names, and the same numbers to the bit."""
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


# ---- safetensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_has_the_weights_that_it_computes_with(name, tmp_path, cache):
    """All tensors under our names, as float32, and no others; a head only if it is not the embedding."""
    model = make(tmp_path / "model", CONFIGS[name]())
    weights = load(tmp_path / "model")
    assert_same(unpacked(weights), expected(model))
    assert {matrix.format for matrix in weights.matrices.values()} == {F32}
    assert len(entries(cache)) == 1


def test_a_model_in_several_files_is_read_from_all_of_them(tmp_path, cache):
    """An index says which files there are."""
    model = make(tmp_path / "model", CONFIGS["llama"](), max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    assert_same(unpacked(load(tmp_path / "model")), expected(model))
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(("dtype", "form"), [(torch.float16, F16), (torch.bfloat16, BF16)])
def test_half_precision_stays_what_it_is(dtype, form, tmp_path, cache):
    """Matrices keep their 16 bits; vectors become float32."""
    model = make(tmp_path, CONFIGS["qwen3"]().__class__(**SMALL, dtype=dtype)).to(dtype)
    model.save_pretrained(tmp_path)
    weights = load(tmp_path)
    assert {matrix.format for matrix in weights.matrices.values()} == {form}
    assert {vector.dtype for vector in weights.vectors.values()} == {np.dtype(np.float32)}
    assert_same(unpacked(weights), expected(model))
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("quantize", "body"), [("q4", Q4), ("q8", Q8)])
def test_quantize_holds_floats_in_few_bits(quantize, body, dtype, tmp_path, cache):
    """4 bits for the layers, 8 for embedding and head; no weight is further off than half a step of its group."""
    model = make(tmp_path, CONFIGS["llama"]()).to(dtype)
    model.save_pretrained(tmp_path)
    weights = load(tmp_path, quantize=quantize)
    assert {name: matrix.format for name, matrix in weights.matrices.items()} == {
        name: Q8 if name in ("embedding", "head") else body for name in weights.matrices
    }
    ours = unpacked(weights)
    for name, tensor in expected(model).items():
        if name in weights.vectors:
            np.testing.assert_array_equal(ours[name], tensor)
            continue
        groups = tensor.reshape(len(tensor), -1, 32)
        if weights.matrices[name].format == Q4:
            step = (groups.max(-1) - groups.min(-1)) / 15
        else:
            step = np.abs(groups).max(-1) / 127
        error = np.abs(ours[name].reshape(groups.shape) - groups).max(-1)
        assert (error <= 0.5 * step + 0.002 * np.abs(groups).max(-1)).all()  # and the rounding of factors to binary16
        assert error.max() > 0
    assert len(entries(cache)) == 1


def test_rows_that_are_not_whole_groups_stay_floats(tmp_path, cache):
    """80 inputs are two groups and a half: that matrix alone is not quantized."""
    make(tmp_path, transformers.LlamaConfig(**{**SMALL, "intermediate_size": 80}))
    weights = load(tmp_path, quantize="q4")
    assert {name for name, matrix in weights.matrices.items() if matrix.format == F32} == {
        "layers.0.down",
        "layers.1.down",
    }
    assert len(entries(cache)) == 1


def test_a_missing_tensor_is_named(llama, cache):
    """With its file and the shape it should have; nothing is left in the cache."""
    rewrite(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        ModelError,
        match=rf"{llama}/model\.safetensors are incomplete: model\.layers\.1\.mlp\.up_proj\.weight of shape \[96, 64\]",
    ):
        load(llama)
    assert entries(cache) == []


@pytest.mark.usefixtures("cache")
def test_a_tensor_of_another_shape_is_named(llama):
    """Both shapes are said."""
    rewrite(llama, lambda tensors: tensors.update({"lm_head.weight": np.zeros((64, 70), np.float32)}))
    with pytest.raises(ModelError, match=r"lm_head\.weight has shape \[64, 70\], and \[70, 64\] was expected"):
        load(llama)


@pytest.mark.usefixtures("cache")
def test_a_tensor_of_a_type_that_cannot_be_held_is_named(llama):
    """Another runner may know what to do with it."""
    rewrite(llama, lambda tensors: tensors.update({"lm_head.weight": np.zeros((70, 64))}))
    with pytest.raises(Unsupported, match=r"its tensor lm_head\.weight is of the type F64"):
        load(llama)


@pytest.mark.usefixtures("cache")
def test_weights_under_other_names_are_left_to_another_runner(llama):
    """Checkpoints that were saved under older names are for transformers, which knows them all."""
    rewrite(llama, lambda tensors: tensors.update({"embed_tokens.weight": tensors.pop("model.embed_tokens.weight")}))
    with pytest.raises(Unsupported, match="its weights have other names"):
        load(llama)


@pytest.mark.usefixtures("cache")
def test_a_header_that_lies_about_a_tensor_is_refused(llama):
    """A tensor with too few bytes for its shape is not read beyond them."""
    path = llama / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"shape":[70,64]', b'"shape":[70,65]', 1))
    assert path.read_bytes() != content
    with pytest.raises(ModelError, match=r"its header gives .*weight 17920 bytes .* tensor of shape \[70, 65\]"):
        load(llama)


# ---- GGUF ----------------------------------------------------------------------------------------------------------

WIDE: dict[str, Any] = {**SMALL, "vocab_size": 40, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
KINDS = {
    "embedding": Type.Q8_0,
    "query": Type.Q4_0,
    "key": Type.Q4_1,
    "value": Type.Q5_K,
    "output": Type.F16,
    "gate": Type.Q4_K,
    "up": Type.BF16,
    "down": Type.Q6_K,
}
FORMATS = {
    "embedding": Q8,
    "query": Q4,
    "key": Q4,
    "value": Q8_MIN,
    "output": F16,
    "gate": Q4_WIDE,
    "up": BF16,
    "down": Q8_FINE,
    "head": F32,
}


def gguf_folder(folder, config, kinds, *, heads=None):
    """A folder as `prepare` leaves it, made from a GGUF file of a random model; and what is in that file."""
    model = make(folder, config)
    (folder / "model.safetensors").unlink()
    tensors = expected(model)
    for name in tensors:
        if name.endswith("norm"):
            tensors[name] = np.round(tensors[name], 3)
    held = write_gguf(folder / "some.gguf", tensors, kinds, heads=heads or {})
    (folder / "rbee.json").write_text(json.dumps({"gguf": "some.gguf", "files": {}}))
    return held


def test_every_type_of_a_gguf_is_held_without_loss(tmp_path, cache):
    """Each type has its format and the numbers that gguf makes of it; llama.cpp's order of rows is undone."""
    held = gguf_folder(tmp_path, transformers.LlamaConfig(**WIDE), KINDS, heads={"query": 4, "key": 2})
    weights = load(tmp_path)
    assert {name: matrix.format for name, matrix in weights.matrices.items()} == {
        name: FORMATS[name.rpartition(".")[2]] for name in weights.matrices
    }
    assert_same(unpacked(weights), held)
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("name", ["llama, tied and biased", "qwen2", "gemma3"])
def test_biases_and_norms_of_a_gguf_are_found(name, tmp_path, cache):
    """Biases are turned with their matrices where those are; norms of Gemma have their offset already."""
    turned = {"query": 4, "key": 2} if name.startswith("llama") else {}
    held = gguf_folder(tmp_path, CONFIGS[name](), {"query": Type.Q8_0, "key": Type.Q8_0}, heads=turned)
    assert_same(unpacked(load(tmp_path)), held)
    assert len(entries(cache)) == 1


def test_quantize_leaves_blocks_as_they_are(tmp_path, cache):
    """Only the floats of a GGUF are quantized."""
    gguf_folder(tmp_path, transformers.LlamaConfig(**WIDE), KINDS, heads={"query": 4, "key": 2})
    formats = {name: matrix.format for name, matrix in load(tmp_path, quantize="q4").matrices.items()}
    floats = {"output": Q4, "up": Q4, "head": Q8}
    assert formats == {name: {**FORMATS, **floats}[name.rpartition(".")[2]] for name in formats}
    assert len(entries(cache)) == 1


@pytest.mark.usefixtures("cache")
def test_a_gguf_type_that_cannot_be_held_is_named(tmp_path):
    """So that the choice of another runner can be explained."""
    gguf_folder(tmp_path, transformers.LlamaConfig(**WIDE), {"up": Type.Q5_0}, heads={"query": 4, "key": 2})
    with pytest.raises(Unsupported, match=r"its tensor blk\.0\.ffn_up\.weight is of the type Q5_0"):
        load(tmp_path)


@pytest.mark.usefixtures("cache")
def test_a_gguf_that_lacks_a_tensor_is_named(tmp_path):
    """The GGUF's own name for it."""
    model = make(tmp_path, CONFIGS["llama"]())
    tensors = expected(model)
    del tensors["layers.1.down"]
    write_gguf(tmp_path / "some.gguf", tensors, {}, heads={"query": 4, "key": 2})
    (tmp_path / "rbee.json").write_text('{"gguf": "some.gguf"}')
    with pytest.raises(ModelError, match=rf"{tmp_path}/some\.gguf are incomplete: blk\.1\.ffn_down\.weight"):
        load(tmp_path)


def test_the_default_model_is_held_without_loss(default_model, cache):
    """Packed from its GGUF's blocks it has, bit for bit, the floats that transformers reads from the file."""
    assert gguf_of(default_model.path) is not None
    weights = load(default_model.path)
    assert {FORMAT_NAMES[matrix.format] for matrix in weights.matrices.values()} == {"q4", "q8"}
    theirs = load_file(default_model.path / "model.safetensors")
    ours = unpacked(weights)
    names = {
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "layers.0.query": "model.layers.0.self_attn.q_proj.weight",
        "layers.7.key": "model.layers.7.self_attn.k_proj.weight",
        "layers.7.value": "model.layers.7.self_attn.v_proj.weight",
        "layers.15.output": "model.layers.15.self_attn.o_proj.weight",
        "layers.15.gate": "model.layers.15.mlp.gate_proj.weight",
        "layers.29.down": "model.layers.29.mlp.down_proj.weight",
        "layers.29.mlp_norm": "model.layers.29.post_attention_layernorm.weight",
    }
    for name, their_name in names.items():
        np.testing.assert_array_equal(ours[name], theirs[their_name], err_msg=name)
    assert sum(path.stat().st_size for path in entries(cache)[0].iterdir()) < 97_000_000


# ---- the cache -----------------------------------------------------------------------------------------------------


def entries(cache):
    """The packed weights in a cache folder."""
    return sorted(path for path in cache.glob("*") if path.is_dir())


def test_a_second_start_maps_what_the_first_has_packed(llama, cache, reports):
    """Nothing is packed or told, and the weights are the file's pages, aligned for the kernels."""
    first = load(llama, quantize="q8", progress=reports)
    assert reports[0] == ("packing the weights", 0, 16)
    (entry,) = entries(cache)
    assert entry.name.startswith("llama.packed-")
    before = (entry / "weights.bin").stat()
    reports.clear()
    second = load(llama, quantize="q8", progress=reports)
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
    assert_same(unpacked(load(llama, progress=reports)), first)
    assert reports
    reports.clear()
    load(llama, progress=reports)
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

    load(llama, progress=look)
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
        load(llama, progress=lambda *_: os.utime(path, ns=(1, 1)))
    assert entries(cache) == []


def test_two_processes_at_once_pack_once(llama, cache):
    """The second one waits for the first and maps what it has made."""
    program = """
import sys
from pathlib import Path
from tests.engine.runners.native.weights_parts import load
reports = []
sys.stdin.read(1)
weights = load(Path(sys.argv[1]), progress=lambda *report: reports.append(report[0]))
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
load_weights(spec, folder, quantize="none", progress=lambda *_: None)
print(sorted({"torch", "transformers", "gguf", "safetensors", "tokenizers"} & set(sys.modules)))
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program, llama], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
    assert len(entries(cache)) == 1


def test_names_in_the_tests_are_those_of_the_gguf_package():
    """The files written here are called as llama.cpp calls them."""
    import gguf

    for architecture in (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.GEMMA3):
        names = gguf.get_tensor_name_map(architecture, 2)
        theirs = {
            "layers.1.query": "model.layers.1.self_attn.q_proj",
            "layers.1.mlp_norm": "model.layers.1.post_attention_layernorm",
            "layers.0.down": "model.layers.0.mlp.down_proj",
            "embedding": "model.embed_tokens",
            "final_norm": "model.norm",
        }
        if architecture == gguf.MODEL_ARCH.GEMMA3:
            del theirs["layers.1.mlp_norm"]
            theirs |= {
                "layers.1.mlp_norm": "model.layers.1.pre_feedforward_layernorm",
                "layers.1.post_mlp_norm": "model.layers.1.post_feedforward_layernorm",
                "layers.1.post_attention_norm": "model.layers.1.post_attention_layernorm",
                "layers.1.query_norm": "model.layers.1.self_attn.q_norm",
            }
        for ours, name in theirs.items():
            found = names.get_name(name)
            assert gguf_name(ours) == f"{found}.weight", ours
