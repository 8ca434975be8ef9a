"""What files call the tensors of each family, and tensors that no one asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file

from rbee.engine.runners.interface import Unsupported
from rbee.errors import ModelError
from tests.engine.runners.native.stored_parts import assert_same, rewrite
from tests.engine.runners.native.weights_parts import load as load_weights
from tests.engine.runners.native.weights_parts import unpacked
from tests.engine.runners.tiny_models import NATIVE_ARCHITECTURES, SIXTEEN, Architecture, load, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("cache")

# ---- tensors that no one asked for -----------------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path):
    """The folder of a small Llama."""
    make_model(tmp_path / "model", NATIVE_ARCHITECTURES["llama"])
    return tmp_path / "model"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.3.mlp.up_proj.weight",
        "model.embed_positions.weight",
        "score.weight",
    ],
)
def test_a_tensor_that_the_kernels_do_not_use_is_a_refusal(name, llama):
    """Whoever computed with it would get other tokens."""
    rewrite(llama, lambda tensors: tensors.update({name: np.ones(64, np.float32)}))
    with pytest.raises(Unsupported, match=f"its tensor {name} is one that the native kernels do not use"):
        load_weights(llama)


def test_the_torch_runner_warns_of_tensors_that_transformers_does_not_use(llama, caplog):
    """It takes the model over, and computes as transformers does."""
    load(llama)
    assert caplog.messages == []
    rewrite(llama, lambda tensors: tensors.update({"model.layers.1.self_attn.q_proj.bias": np.ones(64, np.float32)}))
    load(llama)
    (line,) = caplog.messages
    name = "model.layers.1.self_attn.q_proj.bias"
    assert line == f"Transformers does not use {name} and 0 other tensors of the weights in {llama}."


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.mtp.layers.0.input_layernorm.weight",
        "mtp.norm.weight",
        "visual.merger.ln_q.weight",
        "model.vision_tower.ln_pre.weight",
        "multi_modal_projector.linear_1.weight",
    ],
)
def test_a_tensor_that_changes_no_token_is_none(name, llama):
    """What follows from the config, what is for images, and what predicts further tokens."""
    expected = unpacked(load_weights(llama))
    rewrite(llama, lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    assert_same(unpacked(load_weights(llama)), expected)


def test_a_head_is_used_where_it_is_not_the_embedding_that_the_config_makes_of_it(tmp_path):
    """Like transformers: a copy of the embedding is none, and another matrix is the head."""
    folder = tmp_path / "model"
    make_model(folder, NATIVE_ARCHITECTURES["llama, tied and biased"])
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding.copy()}))
    assert "head" not in load_weights(folder).matrices
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding[::-1].copy()}))
    np.testing.assert_array_equal(unpacked(load_weights(folder))["head"], embedding[::-1])
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding[:-1].copy()}))
    with pytest.raises(ModelError, match=r"lm_head\.weight has shape \[210, 64\], and \[211, 64\] was expected"):
        load_weights(folder)


# ---- GGUF ------------------------------------------------------------------------------------------------------------

GGUF_ARCHITECTURES = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "ministral3": "MISTRAL3",
    "qwen2": "QWEN2",
    "gemma": "GEMMA",
    "gemma3": "GEMMA3",
    "granite": "GRANITE",
    "ernie4_5": "ERNIE4_5",
    "seed_oss": "SEED_OSS",
    "smollm3": "SMOLLM3",
    "arcee": "ARCEE",
    "phi3, longrope of parts of heads": "PHI3",
}
PERMUTED = ("LLAMA", "MISTRAL3", "GRANITE", "SMOLLM3", "ARCEE")  # whose converters are llama.cpp's LlamaModel


def write_family(folder: Path, model: transformers.PreTrainedModel, architecture: str, **more: NDArray[Any]) -> None:
    """The model as llama.cpp's converter writes it, matrices in Q8_0; the model gets the numbers that the file has."""
    arch = getattr(gguf.MODEL_ARCH, architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    writer = gguf.GGUFWriter(folder / "some.gguf", gguf.MODEL_ARCH_NAMES[arch])
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        tensor, part = parameter.detach().numpy().copy(), name.split(".")[-2]
        halves = (heads.get(part, 1), 2, -1, *tensor.shape[1:])
        turned = architecture in PERMUTED and part in heads
        if turned:
            tensor = tensor.reshape(halves).swapaxes(1, 2).reshape(tensor.shape)
        if architecture.startswith("GEMMA") and name.endswith("norm.weight"):
            tensor += np.float32(1)
        kind = Type.Q8_0 if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else Type.F32
        blocks = gguf.quants.quantize(tensor, kind)
        writer.add_tensor(
            f"{names.get_name(name.rpartition('.')[0])}.{name.rpartition('.')[2]}", blocks, raw_dtype=kind
        )
        if kind == Type.Q8_0:
            held = gguf.quants.dequantize(blocks, kind)
            if turned:
                held = held.reshape(halves[0], -1, 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(held))
    for name, tensor in more.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def from_gguf(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of the GGUF in the folder, in floats."""
    (folder / "rbee.json").write_text('{"gguf": "some.gguf"}')
    return unpacked(load_weights(folder))


@pytest.mark.parametrize("name", GGUF_ARCHITECTURES)
def test_a_gguf_of_every_family_has_the_weights_of_its_safetensors(name, tmp_path):
    """Names, the order of rows in heads, fused matrices and the offset of norms are those of llama.cpp's converters."""
    tied = Architecture(lambda: transformers.GemmaConfig(**{**SIXTEEN, "tie_word_embeddings": True}, head_dim=32))
    model = make_model(tmp_path, tied if name == "gemma" else NATIVE_ARCHITECTURES[name])  # whose GGUF has no head
    write_family(tmp_path, model, GGUF_ARCHITECTURES[name])
    model.save_pretrained(tmp_path)
    expected = unpacked(load_weights(tmp_path))
    assert_same(from_gguf(tmp_path), expected)


def test_fused_queries_keys_and_values_of_a_llama_are_taken_apart(tmp_path):
    """llama.cpp takes one matrix for them in every family; its rows of queries and keys are in its order."""
    model = make_model(tmp_path, NATIVE_ARCHITECTURES["llama"])
    write_family(tmp_path, model, "LLAMA")
    expected = from_gguf(tmp_path)
    reader = gguf.GGUFReader(tmp_path / "some.gguf")
    tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for layer in range(3):
        parts = [tensors.pop(f"blk.{layer}.attn_{part}.weight") for part in "qkv"]
        tensors[f"blk.{layer}.attn_qkv.weight"] = (np.concatenate([data for data, _ in parts]), parts[0][1])
    writer = gguf.GGUFWriter(tmp_path / "fused.gguf", "llama")
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "fused.gguf").rename(tmp_path / "some.gguf")
    assert_same(from_gguf(tmp_path), expected)


def test_factors_of_ropes_in_a_gguf_are_in_its_config(tmp_path):
    """They are no reason to refuse the file; a bias that the config does not have is one."""
    model = make_model(tmp_path, NATIVE_ARCHITECTURES["llama"])
    ones = np.ones(8, np.float32)
    write_family(tmp_path, model, "LLAMA", **{"rope_freqs.weight": ones, "rope_factors_long.weight": ones})
    from_gguf(tmp_path)
    write_family(tmp_path, model, "LLAMA", **{"blk.0.attn_q.bias": ones})
    with pytest.raises(Unsupported, match=r"its tensor blk\.0\.attn_q\.bias is one that the native kernels do not use"):
        from_gguf(tmp_path)


def test_a_gguf_of_an_unknown_architecture_is_refused(tmp_path):
    """The order of rows in its heads could be either."""
    write_family(tmp_path, make_model(tmp_path, NATIVE_ARCHITECTURES["llama"]), "BAICHUAN")
    with pytest.raises(
        Unsupported, match=r"its general\.architecture is 'baichuan', and the native kernels know the order"
    ):
        from_gguf(tmp_path)
