"""What clients see of a model folder."""

from __future__ import annotations

import json
import logging

import pytest
from tokenizers import AddedToken

from rbee.errors import ConfigError
from rbee.models import prepare, synthetic
from rbee.server.text import served_model
from rbee.server.text.output import Tool
from tests.models.models_parts import RecordingProgress, write_tiny_gguf


@pytest.fixture
def folder(tmp_path):
    """A folder with the synthetic model's tokenizer."""
    synthetic.tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_recommended_sampling_parameters_become_defaults_unless_they_are_switched_off(folder, caplog):
    """One line of the log has them."""
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "eos_token_id": 7}')
    with caplog.at_level(logging.INFO):
        model = served_model.load("m", folder)
    assert model.sampling_defaults == {"temperature": 0.6, "top_k": 20}
    assert "Where a request leaves them out, temperature 0.6, top_k 20: the model's own" in caplog.text
    model = served_model.load("m", folder, use_generation_config=False)
    assert model.sampling_defaults == {}
    assert model.end_token_ids == {7}


def test_templates_besides_the_default_one_are_named_once(folder, caplog):
    """Only that for tools is used besides, where a request offers some, as in transformers."""
    named = [{"name": name, "template": name} for name in ("tool_use", "default", "rag")]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    with caplog.at_level(logging.INFO):
        model = served_model.load("m", folder)
    assert [model.chat_template.for_tools(offered=offered).source for offered in (False, True)] == [
        "default",
        "tool_use",
    ]
    assert "The chat templates rag of the model are not used" in caplog.text


def test_a_template_that_does_not_compile_costs_the_chat_alone(folder, caplog):
    """The start has a warning with the reason, and the model completes texts."""
    (folder / "chat_template.jinja").write_text("{% for %}")
    model = served_model.load("m", folder)
    assert model.chat_template is None
    assert model.no_chat_reason == "has a chat template that does not compile"
    assert "The model's chat template does not compile: Expected" in caplog.text
    assert "chat requests are refused" in caplog.text


def test_formats_of_outputs_are_those_of_the_templates_or_of_the_options(folder, caplog):
    """One line of the log names them. Tags are tokens where the model has them."""
    (folder / "chat_template.jinja").write_text("{{ '<think></think><tool_call>' }}")
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken("<tool_call>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with caplog.at_level(logging.INFO):
        found = served_model.load("m", folder).output_format
    assert (found.tool_parser, found.reasoning_parser) == ("hermes", "qwen3")
    assert "Tool calls are read as hermes, reasoning as qwen3" in caplog.text
    grammar = found.grammar([Tool("ping")], choice="required", parallel=True, answer=None)
    assert grammar is not None
    assert f"<[{tokenizer.token_to_id('<tool_call>')}]>" in grammar
    assert '"</tool_call>"' in grammar
    found = served_model.load("m", folder, tool_parser="mistral", reasoning_parser="none").output_format
    assert (found.tool_parser, found.reasoning_parser) == ("mistral", "none")


def test_a_template_that_the_user_names_replaces_all_of_the_model(folder, caplog):
    """Also that for tools; the formats of outputs are recognized by it. The synthetic model takes one, too."""
    named = [{"name": name, "template": name} for name in ("tool_use", "default", "rag")]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named, "bos_token": "<s>"}))
    own = folder / "own.jinja"
    own.write_text("{{ bos_token }}[TOOL_CALLS]</think>", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        model = served_model.load("m", folder, template_file=str(own))
    for offered in (False, True):
        assert model.chat_template.for_tools(offered=offered).render([{"role": "user", "content": "Hi"}]) == [
            "<s>[TOOL_CALLS]</think>"
        ]
    assert (model.output_format.tool_parser, model.output_format.reasoning_parser) == ("mistral", "qwen3")
    assert "rag" not in caplog.text
    assert served_model.load_synthetic("s", template_file=str(own)).chat_template.source.endswith("</think>")


@pytest.mark.parametrize("content", [None, b"{% for %}", b"\xff"], ids=["no file", "no template", "no text"])
def test_a_template_file_that_cannot_be_used_is_refused(folder, content):
    """By its name, with the reason, before the model is read."""
    own = folder / "own.jinja"
    if content is not None:
        own.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--chat-template is {own}, which cannot be used: "):
        served_model.check_template_file(str(own))
    served_model.check_template_file("")


def test_a_template_beside_a_gguf_file_is_named(tmp_path, monkeypatch, caplog):
    """It is not the model's; the option that takes it is named with it, and takes it."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    ready = prepare(str(model), progress=RecordingProgress())
    own = served_model.load(ready.name, ready.path).chat_template.source
    assert "is not read" not in caplog.text
    beside = tmp_path / "chat_template.jinja"
    beside.write_text("Mine.")
    assert served_model.load(ready.name, ready.path).chat_template.source == own
    assert f"{beside} is not read" in caplog.text
    assert f"--chat-template {beside} takes this one" in caplog.text
    caplog.clear()
    assert served_model.load(ready.name, ready.path, template_file=str(beside)).chat_template.source == "Mine."
    assert "is not read" not in caplog.text
