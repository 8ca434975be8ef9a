"""What a GGUF's metadata becomes in a model folder's small files."""

from __future__ import annotations

import json
import subprocess
import sys

import gguf
import pytest

from rbee.models import synthetic
from rbee.models.chat_templates import read_templates
from rbee.models.gguf import open_gguf, read_header
from rbee.models.gguf.small_files import files_of, sampling_of, templates_of
from rbee.server.text import served_model

REFERENCE = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer, PreTrainedTokenizerFast
folder, file = sys.argv[1], Path(sys.argv[2])
for tokenizer in (
    PreTrainedTokenizerFast.from_pretrained(folder),
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name),
):
    print(json.dumps([tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template]))
"""


@pytest.fixture
def metadata(tmp_path):
    """As the gguf package writes it, read again."""

    def make(write):
        writer = gguf.GGUFWriter(tmp_path / "made.gguf", "llama")
        write(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return read_header(tmp_path / "made.gguf").metadata

    return make


def test_they_say_what_transformers_reads_from_the_file(tiny_gguf, tmp_path):
    """Our files and transformers' own conversion give one tokenizer's special tokens, template and settings."""
    tokenizer = tmp_path / "tokenizer"
    for name, content in files_of(open_gguf(tiny_gguf).metadata, eos_ids=[0, 2], bos_id=1).items():
        tokenizer.mkdir(exist_ok=True)
        (tokenizer / name).write_bytes(content)
    synthetic.tokenizer().save(str(tokenizer / "tokenizer.json"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE, tokenizer, tiny_gguf],
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = (json.loads(line) for line in done.stdout.splitlines())
    assert ours == theirs
    model = served_model.load("m", tokenizer)
    assert model.end_token_ids == {0, 2}
    assert model.chat_template.render([{"role": "user", "content": "hi"}]) == ["<|im_start|>user\nhi<|im_end|>\n"]
    settings = json.loads((tokenizer / "tokenizer_config.json").read_bytes())
    assert (settings["add_bos_token"], settings["model_max_length"]) == (False, 128)
    generation = json.loads((tokenizer / "generation_config.json").read_bytes())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2], "temperature": 0.6}


def test_named_templates_survive(metadata, tmp_path):
    """The gguf package's keys for several templates become entries that `read_templates` finds."""
    templates = [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
        {"name": "rag", "template": "R"},
    ]
    found = metadata(lambda writer: writer.add_chat_template(templates))
    assert templates_of(found) == {"default": "D", "rag": "R", "tool_use": "T"}
    for name, content in files_of(found, eos_ids=[], bos_id=None).items():
        (tmp_path / name).write_bytes(content)
    assert read_templates(tmp_path) == {"default": "D", "rag": "R", "tool_use": "T"}


def test_sampling_keys_have_the_names_of_generation_config(metadata):
    """And the numbers that were meant, not their nearest binary32."""

    def write(writer):
        writer.add_float32(gguf.Keys.General.SAMPLING_TEMP, 0.6)
        writer.add_float32(gguf.Keys.General.SAMPLING_TOP_P, 0.95)
        writer.add_int32(gguf.Keys.General.SAMPLING_TOP_K, 20)
        writer.add_float32(gguf.Keys.General.SAMPLING_MIN_P, 0.0)
        writer.add_float32(gguf.Keys.General.SAMPLING_PENALTY_REPEAT, 1.05)
        writer.add_float32(gguf.Keys.General.SAMPLING_XTC_THRESHOLD, 0.1)

    found = metadata(write)
    expected = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05}
    assert sampling_of(found) == expected
    files = files_of(found, eos_ids=[7], bos_id=None)
    assert json.loads(files["generation_config.json"]) == expected | {"eos_token_id": 7}


def test_ids_outside_the_vocabulary_name_no_token(metadata):
    """Nor does a file without a vocabulary."""

    def write(writer):
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_token_list(["<pad>", "<s>"])

    files = files_of(metadata(write), eos_ids=[], bos_id=1)
    assert json.loads(files["tokenizer_config.json"]) == {"bos_token": "<s>", "pad_token": "<pad>"}
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "pad_token_id": 0}
    assert json.loads(files_of({}, eos_ids=[], bos_id=None)["tokenizer_config.json"]) == {}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (gguf.PoolingType.MEAN, "mean"),
        (gguf.PoolingType.CLS, "cls"),
        (gguf.PoolingType.LAST, "lasttoken"),
        (gguf.PoolingType.RANK, "rank"),
        (gguf.PoolingType.NONE, None),
    ],
)
def test_pooling(metadata, kind, mode):
    """In the words of sentence-transformers; a model for text, which has none, gets no file."""
    files = files_of(metadata(lambda writer: writer.add_pooling_type(kind)), eos_ids=[], bos_id=None)
    assert json.loads(files.get("pooling.json", "{}")).get("pooling_mode") == mode
    assert "pooling.json" not in files_of(metadata(lambda _: None), eos_ids=[], bos_id=None)
