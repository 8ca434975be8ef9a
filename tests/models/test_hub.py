"""Models from the Hugging Face Hub: the real client against a server in this process, and against none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.models.hub_parts import FIND, run_with_hub, serving_hub
from tests.models.models_parts import PREPARE

FILES = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}
WEIGHTS = save({"w": np.zeros(100, np.float32)})


@pytest.fixture
def hub():
    """A server with whole models, and with org/bin, whose weights are no safetensors."""
    tiny = {**FILES, "model.safetensors": WEIGHTS, "pytorch_model.bin": b"pickle", "README.md": b"# tiny"}
    templates = {"chat_template.jinja": b"{{ messages }}", "additional_chat_templates/tool_use.jinja": b"{{ tools }}"}
    adapter = {"adapter_config.json": b'{"base_model_name_or_path": "org/tiny"}', "adapter_model.safetensors": WEIGHTS}
    models = {
        "org/tiny": tiny,
        "org/templates": tiny | templates,
        "org/both": tiny | {"tiny.Q4_K_M.gguf": b"GGUF"},
        "org/bin": {**FILES, "pytorch_model.bin": b"pickle"},
        "org/adapter": adapter,
        "org/beside": tiny | adapter,
    }
    with serving_hub(models) as server:
        yield server


@pytest.fixture
def pull(tmp_path):
    """A function that prepares a Hub model in a process whose Hub is at `endpoint`."""
    return lambda model, endpoint, **environment: run_with_hub(
        ["-c", PREPARE, model], endpoint, tmp_path / "hf", **environment
    )


def test_a_hub_model_is_downloaded_once_and_found_afterwards(hub, pull):
    """Only the wanted files are fetched; a second start asks the network for nothing."""
    endpoint = hub.url
    first = pull("org/tiny", endpoint)
    assert first.returncode == 0, first.stderr
    folder = first.stdout.strip()
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert "rbee: downloading org/tiny from the Hugging Face Hub" in first.stderr
    seen = len(hub.requests)
    second = pull("org/tiny", endpoint)
    assert (second.stdout.strip(), second.stderr) == (folder, "")
    assert len(hub.requests) == seen


def test_a_download_that_was_interrupted_is_completed(hub, pull):
    """A snapshot without its weights is not taken for whole."""
    endpoint = hub.url
    folder = Path(pull("org/tiny", endpoint).stdout.strip())
    (folder / "model.safetensors").unlink()
    again = pull("org/tiny", endpoint)
    assert again.stdout.strip() == str(folder)
    assert (folder / "model.safetensors").exists()


def test_chat_templates_are_fetched_too(hub, pull):
    """Also those in their folder."""
    folder = Path(pull("org/templates", hub.url).stdout.strip())
    assert (folder / "chat_template.jinja").is_file()
    assert (folder / "additional_chat_templates" / "tool_use.jinja").is_file()


def test_safetensors_win_over_a_gguf_file(hub, pull):
    """A repository with both is fetched as before."""
    folder = Path(pull("org/both", hub.url).stdout.strip())
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "tiny.Q4_K_M.gguf").exists()


def test_an_adapter_beside_a_model_is_left_where_it_is(hub, pull):
    """The model is served without it, and a note says so."""
    done = pull("org/beside", hub.url)
    folder = Path(done.stdout.strip())
    assert "adapter_config.json is not used: rbee serves the model beside it without its LoRA adapter." in done.stderr
    assert not (folder / "adapter_model.safetensors").exists()


def test_what_the_hub_refuses_is_a_sentence(hub, tmp_path):
    """Unknown, gated and unusable models each get their reason and remedy, and no traceback; no weights are fetched."""
    expected = {
        "org/unheard": "ModelError: The Hugging Face Hub has no model org/unheard, and there is no folder of that name",
        "org/gated": "ModelError: The Hub gives org/gated only to users who have accepted its terms.",
        "org/gated:Q4_K_M": "ModelError: The Hub gives org/gated only to users who have accepted its terms.",
        "org/bin": "has no *.safetensors file. Save the model with transformers",
        "org/adapter": "holds a LoRA adapter of org/tiny, which is no model by itself. Merge it into its model with",
        "org/branchless": "ModelError: The repository org/branchless on the Hugging Face Hub has no branch 'main'",
        "org/tiny:Q4_K_M": "ModelError: org/tiny has no GGUF file Q4_K_M. It has no GGUF file at all.",
    }
    done = run_with_hub(["-c", FIND, *expected], hub.url, tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    for said, sentence in zip(done.stdout.splitlines(), expected.values(), strict=True):
        assert sentence in said
    assert not any("safetensors" in file or "bin" in file for file in hub.downloads())


def test_a_hub_that_cannot_be_reached_is_a_sentence(hub, pull):
    """Without a network the sentence gives the reason and the other ways to a model."""
    hub.shutdown()
    hub.server_close()
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = pull("org/tiny", hub.url, **environment)
        assert done.returncode == 1
        assert "ModelError: The model org/tiny could not be downloaded from the Hugging Face Hub (" in done.stderr
        assert "or give --model a folder, a .gguf file or a name from `rbee pull --list`." in done.stderr
        assert "Traceback" not in done.stderr
