"""The default model itself, fetched into the user's cache as `rbee pull` does it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import jinja2
import pytest
from tokenizers import Tokenizer

from rbee.config import DEFAULT_MODEL
from rbee.models import gguf_of, list_catalogue
from tests.models.models_parts import PREPARE

SYSTEM = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2]


@pytest.fixture(scope="module")
def tokenizer(default_model):
    """The folder's tokenizer."""
    return Tokenizer.from_file(str(default_model.path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("Hello world", [19556, 905]),
        ("  leading spaces", [216, 2899, 5600]),
        ("The quick brown fox jumps over the lazy dog", [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767]),
        ("Write a haiku about the ocean.\n", [19161, 253, 421, 30614, 563, 260, 5065, 30, 198]),
        (
            "Quelle est la capitale de la France ? Réponds en une phrase.",
            [65, 2726, 290, 1264, 2618, 47765, 1121, 367, 2618, 4649, 9148, 428, 2756, 96, 19870, 430, 16520, 8715, 30],
        ),
        ("12345", [33, 34, 35, 36, 37]),
        ("a1b22 12", [81, 33, 82, 34, 34, 216, 33, 34]),
        (":\n\n1. Mix  42 g", [42, 1116, 33, 30, 18212, 256, 36, 34, 310]),
        (" ½", [216, 16738]),
        ("你好\uff0c世界", [18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230]),
        ("🐝 bee 👩\u200d🚀", [10813, 234, 247, 11426, 15107, 235, 119, 321, 231, 10813, 244, 218]),
        ("naïve café\t\n  x", [3546, 46494, 37366, 197, 3805, 1792]),
        ("<|im_start|>user\nhi<|im_end|><|endoftext|>", [1, 4093, 198, 6004, 2, 0]),
    ],
)
def test_token_ids_are_those_of_the_original_tokenizer(text, ids, tokenizer):
    """Ids are pinned; the English and French ones, and those of a list item, are in others' public test vectors too."""
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_chat_renders_and_encodes_as_the_original_does(default_model, tokenizer):
    """The template adds the default system prompt, and its markers are single tokens."""
    template = jinja2.Environment(autoescape=False).from_string(
        (default_model.path / "chat_template.jinja").read_text()
    )
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    rendered = template.render(messages=chat, add_generation_prompt=True)
    user = [198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    assert tokenizer.encode(rendered).ids == SYSTEM + user


def test_special_tokens_and_the_end_of_a_turn_are_known(default_model, tokenizer):
    """Ids 0 to 16 are special; generation ends on <|im_end|>, and on what llama.cpp takes for an end besides."""
    added = tokenizer.get_added_tokens_decoder()
    assert {number: token.content for number, token in added.items() if number < 3} == {
        0: "<|endoftext|>",
        1: "<|im_start|>",
        2: "<|im_end|>",
    }
    assert sorted(added) == list(range(17))
    assert all(token.special for token in added.values())
    generation = json.loads((default_model.path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0, 4], "pad_token_id": 2}
    assert added[4].content == "<reponame>"


def test_the_default_model_that_is_ready_needs_no_heavy_import(default_model):
    """Starting to serve it imports neither torch nor transformers nor what only a first use needs."""
    names = "{'torch', 'transformers', 'huggingface_hub', 'gguf', 'rich', 'numpy', 'tokenizers'}"
    program = PREPARE + f"\nprint(sorted({names} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program, DEFAULT_MODEL], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{default_model.path}\n[]\n", "")


def test_the_folder_has_the_gguf_and_little_else(default_model):
    """The file is the catalogue's, and nothing is made of its weights."""
    (known,) = [model for model in list_catalogue() if model.name == DEFAULT_MODEL]
    path = gguf_of(default_model.path)
    assert path == default_model.path / "model.gguf"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == known.sha256
    assert sum(file.stat().st_size for file in default_model.path.iterdir()) < known.size + 5_000_000
