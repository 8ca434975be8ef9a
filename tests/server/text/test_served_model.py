"""What clients see of a model folder."""

from __future__ import annotations

import json
import logging

import pytest

from rbee.models import synthetic
from rbee.server.text import served_model


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
