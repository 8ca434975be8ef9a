"""A server with a model folder whose small files are not as usual."""

from __future__ import annotations

import json

import httpx
import pytest
from safetensors.numpy import save_file

from rbee.models import synthetic
from tests.models.models_parts import TINY_CONFIG, tiny_weights

NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that recommends greedy answers, with a chat template that does not compile."""
    path = tmp_path_factory.mktemp("models") / "greedy"
    path.mkdir()
    synthetic.tokenizer().save(str(path / "tokenizer.json"))
    save_file(tiny_weights(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(TINY_CONFIG))
    (path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.0, "top_k": 40}')
    (path / "chat_template.jinja").write_text("{% for %}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBEE_CACHE", str(path.parent / "cache"))  # where its weights are packed
        yield path


def complete(server):
    """Five answers to a request that says nothing about sampling."""
    body = {"prompt": "Hi", "max_tokens": 12, "n": 5}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60).json()
    return {choice["text"] for choice in answer["choices"]}


def test_the_model_s_recommendations_hold_and_its_broken_template_costs_the_chat_alone(folder, start_server):
    """All answers are the greedy one; the list of models has the values in force."""
    with start_server(str(folder)) as server:
        assert len(complete(server)) == 1
        [card] = httpx.get(server.url + "/v1/models").json()["data"]
        assert card["default_sampling_params"] == NEUTRAL | {"temperature": 0.0, "top_k": 40}
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        refused = httpx.post(server.url + "/v1/chat/completions", json=chat)
        log = server.log.read_text()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_chat_template")
    assert "'greedy' has a chat template that does not compile; use /v1/completions." in refused.text
    assert "INFO rbee.server.text.served_model: Where a request leaves them out, temperature 0, top_k 40" in log
    assert "WARNING rbee.server.text.served_model: The model's chat template does not compile" in log


def test_the_model_s_recommendations_can_be_switched_off(folder, start_server):
    """Neutral values are in force then."""
    with start_server("--generation-config", "none", "-m", str(folder)) as server:
        assert len(complete(server)) > 1
        [card] = httpx.get(server.url + "/v1/models").json()["data"]
    assert card["default_sampling_params"] == NEUTRAL


def test_a_template_of_the_user(folder, start_server, tmp_path):
    """In place of the model's broken one: chats are answered. One that cannot be used ends the start."""
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}!")
    with start_server(str(folder), "--chat-template", str(own)) as server:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()
        assert answer["usage"]["prompt_tokens"] == 3
    own.write_text("{% for %}")
    with start_server(str(folder), "--chat-template", str(own), until=None) as server:
        assert server.wait() == 2
        log = server.log.read_text()
    assert f"--chat-template is {own}, which cannot be used: The model's chat template does not compile" in log
