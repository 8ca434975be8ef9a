"""The list of models: of OpenAI's shape, and of Anthropic's for its clients."""

from __future__ import annotations

from datetime import UTC, datetime

import anthropic
import httpx
import openai
import pytest

from tests.server.server_parts import PATIENCE

VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture
def client(synthetic_server):
    """Anthropic's, which finds an error at once."""
    with anthropic.Anthropic(base_url=synthetic_server.url, api_key="none", max_retries=0, timeout=PATIENCE) as ours:
        yield ours


def get(server, path, **headers):
    """An answer."""
    return httpx.get(server.url + path, headers=headers, timeout=PATIENCE)


def test_anthropics_client_lists_the_model(client):
    """And asks for it by name; both cards are the same, with all that the client's type needs."""
    page = client.models.list()
    [card] = page
    assert (page.has_more, page.first_id, page.last_id) == (False, "synthetic", "synthetic")
    assert (card.id, card.type, card.display_name, card.lifecycle) == ("synthetic", "model", "synthetic", "active")
    assert (card.max_input_tokens, card.max_tokens) == (8192, 8192)
    assert isinstance(card.created_at, datetime)
    assert card.created_at <= datetime.now(UTC)
    assert client.models.retrieve("synthetic") == card
    type(card).model_validate_json(card.model_dump_json())


@pytest.mark.parametrize("cursor", ["after_id", "before_id"])
def test_no_page_comes_before_or_after_it(client, cursor):
    """A client that goes on asking gets an empty page."""
    page = client.models.list(**{cursor: "synthetic"})
    assert (list(page), page.has_more, page.first_id, page.last_id) == ([], False, None, None)


def test_the_answers_have_the_requests_id(synthetic_server):
    """In the header in which Anthropic's clients look for it; caches keep both kinds apart."""
    answer = get(synthetic_server, "/v1/models", **VERSION, **{"X-Request-Id": "mine"})
    assert (answer.headers["request-id"], answer.headers["vary"]) == ("mine", "anthropic-version")
    assert answer.json().keys() == {"data", "has_more", "first_id", "last_id"}
    other = get(synthetic_server, "/v1/models")
    assert ("request-id" in other.headers, other.headers["vary"]) == (False, "anthropic-version")
    assert other.json().keys() == {"object", "data"}


def test_an_unknown_model_is_refused_in_the_clients_words(synthetic_server, client):
    """Both say what is served."""
    with pytest.raises(anthropic.NotFoundError, match="this is 'synthetic'") as refused:
        client.models.retrieve("other")
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["error"]["type"] == "not_found_error"
    with (
        openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as ours,
        pytest.raises(openai.NotFoundError, match="this is 'synthetic'") as also,
    ):
        ours.models.retrieve("other")
    assert (also.value.code, also.value.param) == ("model_not_found", "model")
