"""`rbee show`: the facts of models in each form, and how they are printed."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from rbee.config import DEFAULT_MODEL
from rbee.errors import ModelError
from rbee.models import synthetic
from rbee.show import run
from rbee.show.facts import Memory, Tensors, Vocabulary, describe
from tests.models.models_parts import CHAT_TEMPLATE, RecordingProgress, tiny_weights, write_tiny_gguf

CONFIG = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path):
    """A folder with one half-precision matrix, one vector, templates and recommendations."""
    path = tmp_path / "my-model"
    path.mkdir()
    synthetic.tokenizer().save(str(path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "D", "model_max_length": 9}
    contents = {
        "config.json": CONFIG,
        "tokenizer_config.json": settings,
        "generation_config.json": {"temperature": 0.6},
    }
    for name, content in contents.items():
        (path / name).write_text(json.dumps(content))
    save_file({"a": np.zeros((8, 16), np.float16), "b": np.zeros(4, np.float32)}, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A GGUF file."""
    return write_tiny_gguf(tmp_path_factory.mktemp("show") / "tiny-Q8_0.gguf")


def test_a_folder(folder):
    """Its files, config and tokenizer say everything."""
    facts = describe(str(folder), progress=RecordingProgress())
    assert (facts.name, facts.path, facts.format) == ("my-model", str(folder), "safetensors")
    assert (facts.architecture, facts.parameters, facts.context_length) == ("llama", 132, 64)
    assert facts.tensors == [Tensors("F16", 1, 128, 256), Tensors("F32", 1, 4, 16)]
    assert facts.vocabulary == Vocabulary(256, "BPE", "ByteLevel")
    assert facts.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert facts.chat_templates == {"default": "D"}
    assert facts.sampling_defaults == {"temperature": 0.6}
    assert (facts.runner, facts.reason) == ("native", None)
    per_token = 2 * 3 * 2 * 16 * 2  # keys and values, layers, heads, their width, binary16
    assert facts.memory == Memory(272, per_token * 64 * 256, per_token)  # as much as 256 sequences of full length need
    assert facts.files == {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_folder_that_torch_serves(folder):
    """The reason is the native runner's, and torch computes in float32."""
    (folder / "config.json").write_text(json.dumps({"model_type": "olmo2", "text_config": CONFIG}))
    facts = describe(str(folder), progress=RecordingProgress())
    assert facts.runner == "torch"
    assert facts.reason.startswith("its model_type is 'olmo2', and the native kernels do llama, ")
    assert (facts.memory.weights, facts.memory.kv_cache_per_token) == (4 * 132, 2 * 3 * 2 * 16 * 4)


def test_a_gguf_file_is_read_and_not_converted(tiny, tmp_path, monkeypatch):
    """What the gguf package counts; the cache stays empty."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    facts = describe(str(tiny), progress=RecordingProgress())
    reader = gguf.GGUFReader(tiny)
    assert (facts.name, facts.path, facts.format) == ("tiny-Q8_0", str(tiny.parent), "gguf")
    assert (facts.architecture, facts.context_length) == ("llama", 128)
    assert facts.parameters == sum(weight.size for weight in tiny_weights().values())
    assert {kind.type: kind.bytes for kind in facts.tensors} == {
        kind.name: sum(int(tensor.n_bytes) for tensor in reader.tensors if tensor.tensor_type == kind)
        for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0)
    }
    assert facts.vocabulary == Vocabulary(262, "gpt2", "smollm")
    assert facts.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    assert facts.chat_templates == {"default": CHAT_TEMPLATE}
    assert facts.sampling_defaults == {"temperature": 0.6}
    per_token = 2 * 2 * 2 * 16 * 2
    assert (facts.memory.kv_cache, facts.memory.kv_cache_per_token) == (per_token * 128 * 256, per_token)
    assert facts.files == {tiny.name: tiny.stat().st_size}
    assert not (tmp_path / "cache").exists()


def test_a_catalogue_model_is_its_gguf_file(default_model):
    """With the runner that its first start has found."""
    facts = describe(DEFAULT_MODEL, progress=RecordingProgress())
    assert (facts.name, facts.format, facts.runner) == (DEFAULT_MODEL, "gguf", "native")
    assert facts.path == str(default_model.path)


def test_for_people(folder, capsys):
    """A line for each fact, whole where there is no terminal."""
    run(str(folder), as_json=False)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        "model my-model",
        f"folder {folder}",
        "parameters 132",
        "context 64 tokens",
        "vocabulary 256 tokens, BPE, split ByteLevel",
        "special tokens bos <s>, eos </s>",
        "chat templates default (1 characters)",
        "sampling temperature 0.6",
        "runner native",
        "memory 272 B of weights and 6.3 MB of KV cache, for 16384 tokens in all",
        "F16 1 128 256 B 16.00",
        f"model.safetensors {(folder / 'model.safetensors').stat().st_size} B",
    ):
        assert line.split() in shown, line


def test_for_programs(tiny):
    """One JSON object, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-m", "rbee.cli", "show", str(tiny), "--json"], capture_output=True, text=True, check=True
    )
    shown = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert (shown["architecture"], {kind["type"] for kind in shown["tensors"]}) == ("llama", {"F32", "Q8_0"})
    assert shown["runner"] == "native"


@pytest.mark.parametrize("content", ["[]", '{"model": 5}', '{"model": {"vocab": 7}}', '{"pre_tokenizer": "x"}'])
def test_a_tokenizer_of_another_form_is_a_sentence(content, folder):
    """The file is named."""
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json (is not a JSON object|cannot be read as a tokenizer)"):
        describe(str(folder), progress=RecordingProgress())


def test_a_file_that_cannot_be_served_is_shown_with_the_reason(tmp_path):
    """As far as it makes sense."""
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_uint32("tokenizer.ggml.tokens", 7)
    writer.add_bos_token_id(0)
    writer.add_string("llama.attention.head_count", "many")
    writer.add_uint32("llama.block_count", 0)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    facts = describe(str(tmp_path / "odd.gguf"), progress=RecordingProgress())
    assert (facts.vocabulary.size, facts.special_tokens, facts.context_length) == (0, {}, None)
    assert facts.memory == Memory(16, None, None)
    assert facts.runner is None
    assert facts.reason is not None
    assert "odd.gguf" in facts.reason


def test_the_synthetic_model_has_nothing_to_show():
    """It has no files."""
    with pytest.raises(ModelError, match="The synthetic model has no files"):
        run("synthetic", as_json=True)
