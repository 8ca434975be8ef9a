"""Weights from safetensors and GGUF files, and the formats that hold them."""

from __future__ import annotations

import json
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from rbee.engine.runners.interface import Unsupported
from rbee.engine.runners.native.weights import FORMAT_NAMES
from rbee.errors import ModelError
from rbee.models import gguf_of
from tests.engine.runners.native.stored_parts import (
    BF16,
    CONFIGS,
    F16,
    F32,
    Q4,
    Q4_0,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8,
    SMALL,
    assert_same,
    make,
    rewrite,
)
from tests.engine.runners.native.weights_parts import expected, gguf_name, load, unpacked, write_gguf

# ---- safetensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_of_model_has_the_weights_that_it_computes_with(name, tmp_path):
    """All tensors under our names, as float32, and no others; a head only if it is not the embedding."""
    model = make(tmp_path / "model", CONFIGS[name]())
    weights = load(tmp_path / "model")
    assert_same(unpacked(weights), expected(model))
    assert {matrix.format for matrix in weights.matrices.values()} == {F32}


def test_a_model_in_several_files_is_read_from_all_of_them(tmp_path):
    """An index says which files there are."""
    model = make(tmp_path / "model", CONFIGS["llama"](), max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    assert_same(unpacked(load(tmp_path / "model")), expected(model))


@pytest.mark.parametrize(("dtype", "form"), [(torch.float16, F16), (torch.bfloat16, BF16)])
def test_half_precision_stays_what_it_is(dtype, form, tmp_path):
    """Matrices keep their 16 bits; vectors become float32."""
    model = make(tmp_path, CONFIGS["qwen3"]().__class__(**SMALL, dtype=dtype)).to(dtype)
    model.save_pretrained(tmp_path)
    weights = load(tmp_path)
    assert {matrix.format for matrix in weights.matrices.values()} == {form}
    assert {vector.dtype for vector in weights.vectors.values()} == {np.dtype(np.float32)}
    assert_same(unpacked(weights), expected(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("quantize", "body"), [("q4", Q4), ("q8", Q8)])
def test_quantize_holds_floats_in_few_bits(quantize, body, dtype, tmp_path):
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


def test_rows_that_are_not_whole_groups_stay_floats(tmp_path):
    """80 inputs are two groups and a half: that matrix alone is not quantized."""
    make(tmp_path, transformers.LlamaConfig(**{**SMALL, "intermediate_size": 80}))
    weights = load(tmp_path, quantize="q4")
    assert {name for name, matrix in weights.matrices.items() if matrix.format == F32} == {
        "layers.0.down",
        "layers.1.down",
    }


def test_a_missing_tensor_is_named(llama):
    """With its file and the shape it should have."""
    rewrite(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        ModelError,
        match=rf"{llama}/model\.safetensors are incomplete: model\.layers\.1\.mlp\.up_proj\.weight of shape \[96, 64\]",
    ):
        load(llama)


def test_a_tensor_of_another_shape_is_named(llama):
    """Both shapes are said."""
    rewrite(llama, lambda tensors: tensors.update({"lm_head.weight": np.zeros((64, 70), np.float32)}))
    with pytest.raises(ModelError, match=r"lm_head\.weight has shape \[64, 70\], and \[70, 64\] was expected"):
        load(llama)


def test_a_tensor_of_a_type_that_cannot_be_held_is_named(llama):
    """Another runner may know what to do with it."""
    rewrite(llama, lambda tensors: tensors.update({"lm_head.weight": np.zeros((70, 64))}))
    with pytest.raises(Unsupported, match=r"its tensor lm_head\.weight is of the type F64"):
        load(llama)


def test_weights_under_other_names_are_left_to_another_runner(llama):
    """Checkpoints that were saved under older names are for transformers, which knows them all."""
    rewrite(llama, lambda tensors: tensors.update({"embed_tokens.weight": tensors.pop("model.embed_tokens.weight")}))
    with pytest.raises(Unsupported, match="its weights have other names"):
        load(llama)


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
    "query": Q4_0,
    "key": Q4,
    "value": Q5_K,
    "output": F16,
    "gate": Q4_K,
    "up": BF16,
    "down": Q6_K,
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


def test_every_type_of_a_gguf_is_held_without_loss(tmp_path):
    """Each type has its format and the numbers that gguf makes of it; llama.cpp's order of rows is undone."""
    held = gguf_folder(tmp_path, transformers.LlamaConfig(**WIDE), KINDS, heads={"query": 4, "key": 2})
    weights = load(tmp_path)
    assert {name: matrix.format for name, matrix in weights.matrices.items()} == {
        name: FORMATS[name.rpartition(".")[2]] for name in weights.matrices
    }
    assert_same(unpacked(weights), held)


@pytest.mark.parametrize("name", ["llama, tied and biased", "qwen2", "gemma3"])
def test_biases_and_norms_of_a_gguf_are_found(name, tmp_path):
    """Biases are turned with their matrices where those are; norms of Gemma have their offset already."""
    turned = {"query": 4, "key": 2} if name.startswith("llama") else {}
    held = gguf_folder(tmp_path, CONFIGS[name](), {"query": Type.Q8_0, "key": Type.Q8_0}, heads=turned)
    assert_same(unpacked(load(tmp_path)), held)


def test_quantize_leaves_blocks_as_they_are(tmp_path):
    """Only the floats of a GGUF are quantized."""
    gguf_folder(tmp_path, transformers.LlamaConfig(**WIDE), KINDS, heads={"query": 4, "key": 2})
    formats = {name: matrix.format for name, matrix in load(tmp_path, quantize="q4").matrices.items()}
    floats = {"output": Q4, "up": Q4, "head": Q8}
    assert formats == {name: {**FORMATS, **floats}[name.rpartition(".")[2]] for name in formats}


def test_a_gguf_type_that_cannot_be_held_is_named(tmp_path):
    """So that the choice of another runner can be explained."""
    gguf_folder(tmp_path, transformers.LlamaConfig(**WIDE), {"up": Type.F64}, heads={"query": 4, "key": 2})
    with pytest.raises(Unsupported, match=r"its tensor blk\.0\.ffn_up\.weight is of the type F64"):
        load(tmp_path)


def test_a_gguf_that_lacks_a_tensor_is_named(tmp_path):
    """The GGUF's own name for it."""
    model = make(tmp_path, CONFIGS["llama"]())
    tensors = expected(model)
    del tensors["layers.1.down"]
    write_gguf(tmp_path / "some.gguf", tensors, {}, heads={"query": 4, "key": 2})
    (tmp_path / "rbee.json").write_text('{"gguf": "some.gguf"}')
    with pytest.raises(ModelError, match=rf"{tmp_path}/some\.gguf are incomplete: blk\.1\.ffn_down\.weight"):
        load(tmp_path)


def test_the_default_model_is_held_without_loss(default_model):
    """Packed from its GGUF's blocks it has, bit for bit, the floats that the gguf package reads from the file."""
    path = gguf_of(default_model.path)
    assert path is not None
    weights = load(default_model.path)
    assert {FORMAT_NAMES[matrix.format] for matrix in weights.matrices.values()} == {"q4", "q8"}
    assert sum(matrix.data.nbytes for matrix in weights.matrices.values()) < 97_000_000
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = unpacked(weights)
    for name in (
        "embedding",
        "final_norm",
        "layers.0.query",
        "layers.7.key",
        "layers.7.value",
        "layers.15.output",
        "layers.15.gate",
        "layers.29.down",
        "layers.29.mlp_norm",
    ):
        tensor = theirs[gguf_name(name)]
        floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        heads = {"query": 9, "key": 3}.get(name.rpartition(".")[2])
        if heads:  # llama.cpp's converter made neighbours of the rows that are turned together
            floats = floats.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(floats.shape)
        np.testing.assert_array_equal(ours[name], floats, err_msg=name)


def test_names_in_the_tests_are_those_of_the_gguf_package():
    """The files written here are called as llama.cpp calls them."""
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
