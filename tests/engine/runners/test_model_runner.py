"""Which runner is chosen for a model and its options, and what the user is told about it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers

from rbee.config import EngineConfig
from rbee.engine.runners import choice as model_runner
from rbee.engine.runners.native.families import FAMILIES
from rbee.errors import ConfigError, ModelError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for packed weights."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of small models: a llama, a llama with heads of 20, and a gpt2."""
    folder = tmp_path_factory.mktemp("models")
    for name, config in (
        ("llama", transformers.LlamaConfig(**SIZES)),
        ("odd", transformers.LlamaConfig(**SIZES, head_dim=20)),
        ("gpt2", transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64)),
    ):
        torch.manual_seed(1)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def told(caplog):
    """The lines that the choice has logged."""
    caplog.set_level(logging.INFO, logger="rbee")

    def lines():
        return [record.getMessage() for record in caplog.records if record.name == "rbee.engine.runners.choice"]

    return lines


def load(folder, **options):
    """A runner, as the engine loads it."""
    config = EngineConfig(model=str(folder), threads=1, kv_cache_mib=4, **options)
    return model_runner.load(config, lambda *_: None)


@pytest.mark.parametrize("runner", ["auto", "native"])
def test_the_native_runner_is_taken_where_it_can_be(runner, models, told):
    """Nothing needs to be said about it."""
    assert load(models / "llama", runner=runner).name == "native"
    assert told() == []


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("odd", {}, "its head_dim is 20, and the native kernels need a multiple of 16"),
        ("gpt2", {}, f"its model_type is 'gpt2', and the native kernels do {', '.join(FAMILIES)}"),
        ("llama", {"dtype": "bfloat16"}, "--dtype is bfloat16"),
        ("odd", {"exact": True}, "its head_dim is 20, and the native kernels need a multiple of 16"),
    ],
)
def test_another_model_falls_back_to_torch_with_one_line(name, options, reason, models, told):
    """The line names the model and the reason; the torch runner computes exactly anyway."""
    assert load(models / name, **options).name == "torch"
    assert told() == [
        f"The torch runner serves {models / name}, because the native one cannot: {reason}.",
    ]


def test_weights_that_the_kernels_cannot_hold_fall_back_too(models, tmp_path, told):
    """What is in the files counts, not only the configuration."""
    model = transformers.AutoModelForCausalLM.from_pretrained(models / "llama").double()
    model.save_pretrained(tmp_path / "doubles")
    assert load(tmp_path / "doubles").name == "torch"
    (line,) = told()
    assert line.endswith("is of the type F64, which the native kernels do not hold.")


def test_torch_can_be_asked_for(models, told):
    """Of a model that the native runner could serve as well."""
    assert load(models / "llama", runner="torch").name == "torch"
    assert told() == []


@pytest.mark.parametrize(
    ("name", "options", "error", "sentence"),
    [
        (
            "odd",
            {"runner": "native"},
            ModelError,
            r"^--runner native cannot serve the model in /.*/odd: its head_dim is 20, .*\. Leave --runner out, and the",
        ),
        (
            "gpt2",
            {"quantize": "q4"},
            ConfigError,
            r"^--quantize q4 needs the native runner, which cannot serve the model in /.*/gpt2: .* Leave --quantize",
        ),
        ("llama", {"dtype": "float32", "quantize": "q8"}, ConfigError, r"^--quantize q8 needs the native runner"),
        (
            "llama",
            {"runner": "native", "device": "cuda"},
            ConfigError,
            "^--runner native and --device cuda contradict each other: .* Leave one of them out",
        ),
        (
            "llama",
            {"runner": "native", "dtype": "float32"},
            ConfigError,
            "^--runner native and --dtype float32 contradict each other: .* as precisely as --exact and --quantize say",
        ),
        (
            "llama",
            {"runner": "torch", "exact": True},
            ConfigError,
            "^--runner torch and --exact contradict each other: that is an option of the native runner",
        ),
        (
            "llama",
            {"runner": "torch", "quantize": "q4"},
            ConfigError,
            "^--runner torch and --quantize q4 contradict each other",
        ),
        (
            "llama",
            {"runner": "torch", "kv_cache_dtype": "q8"},
            ConfigError,
            "^--runner torch and --kv-cache-dtype q8 contradict each other: that is an option of the native runner",
        ),
        (
            "llama",
            {"exact": True, "kv_cache_dtype": "f16"},
            ConfigError,
            "^--exact and --kv-cache-dtype f16 contradict each other: an exact KV cache has 32 bits",
        ),
        (
            "gpt2",
            {"kv_cache_dtype": "q8"},
            ConfigError,
            "^--kv-cache-dtype q8 needs the native runner, .*/gpt2: .* Leave --kv-cache-dtype out, and the torch",
        ),
        ("llama", {"runner": "synthetic"}, ConfigError, "^--runner synthetic cannot run --model /"),
    ],
)
def test_options_that_cannot_be_obeyed_are_refused(name, options, error, sentence, models):
    """The sentence names the options, the reason and what to leave out."""
    with pytest.raises(error, match=sentence):
        load(models / name, **options)


@pytest.mark.parametrize("content", [None, "{", "[1]"], ids=["missing", "no json", "no object"])
def test_a_config_that_cannot_be_read_is_a_sentence(content, tmp_path):
    """Before anything is imported to serve it."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        ModelError, match=rf"^(The folder )?{tmp_path}.*config\.json.*\.$|^{tmp_path}/config\.json .*\.$"
    ):
        load(tmp_path)


def test_the_choice_of_native_loads_no_torch(models):
    """Neither torch nor transformers is imported by an engine that serves with the native runner."""
    program = f"""
import sys
from rbee.config import EngineConfig
from rbee.engine import process
from rbee.engine.runners import choice as model_runner
config = EngineConfig(model={json.dumps(str(models / "llama"))}, threads=1, kv_cache_mib=4)
print(model_runner.load(config, lambda *_: None).name, sorted({{"torch", "transformers", "gguf"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "native []\n"
