"""Chat templates in every form that a model folder may have them in."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from rbee.errors import ModelError
from rbee.models import synthetic
from rbee.models.chat_templates import read_templates

LIST = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
FORMS: dict[str, dict[str, Any]] = {
    "text": {"tokenizer_config.json": {"chat_template": "D"}},
    "list": {"tokenizer_config.json": {"chat_template": LIST}},
    "object": {"tokenizer_config.json": {"chat_template": {"default": "D", "tool_use": "T"}}},
    "null": {"tokenizer_config.json": {"chat_template": None}},
    "file": {"chat_template.jinja": "F", "tokenizer_config.json": {"chat_template": "D"}},
    "files": {"chat_template.jinja": "F", "additional_chat_templates/tool_use.jinja": "T", "tokenizer_config.json": {}},
}
PROCESSOR = {"chat_template.json": {"chat_template": "P"}, "tokenizer_config.json": {"chat_template": "D"}}

REFERENCE = """
import json, sys
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    print(json.dumps(AutoTokenizer.from_pretrained(folder).chat_template))
"""


def write(folder, form):
    """A folder with these files: an object becomes JSON."""
    for name, content in form.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_they_are_those_that_transformers_reads(tmp_path):
    """One template is called default here, and has no name there."""
    tokenizer = synthetic.tokenizer().to_str()
    model_class = {"tokenizer_class": "PreTrainedTokenizerFast"}
    folders = []
    for name, form in FORMS.items():
        files = form | {"tokenizer_config.json": model_class | form["tokenizer_config.json"]}
        folders.append(write(tmp_path / name, files | {"tokenizer.json": tokenizer, "config.json": {}}))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE, *folders], capture_output=True, text=True, check=True
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    named = [{} if given is None else {"default": given} if isinstance(given, str) else given for given in theirs]
    assert [read_templates(folder) for folder in folders] == named


def test_a_processor_has_a_file_of_its_own(tmp_path):
    """It comes before the tokenizer's entry."""
    assert read_templates(write(tmp_path, PROCESSOR)) == {"default": "P"}


def test_a_folder_without_templates_has_none(tmp_path):
    """No file is needed."""
    assert read_templates(tmp_path) == {}


@pytest.mark.parametrize("given", [5, ["D"], [{"name": "default"}], {"default": 5}, [{"template": "D"}]])
def test_what_is_no_template_is_refused(given, tmp_path):
    """With the file's name."""
    write(tmp_path, {"tokenizer_config.json": {"chat_template": given}})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json has a chat_template that is neither a text nor"):
        read_templates(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/rag.jinja"])
def test_a_file_in_another_encoding_is_refused(name, tmp_path):
    """With its name and the place."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("{{ 'Grüße' }}".encode("latin-1"))
    with pytest.raises(ModelError, match=rf"The chat template {path} is not UTF-8 \(byte 6\)\. Save it as UTF-8"):
        read_templates(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000])
def test_a_damaged_settings_file_is_refused(content, tmp_path):
    """Whatever is wrong with it, the file is named."""
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json is not (valid JSON|a JSON object)"):
        read_templates(tmp_path)
