"""Budgets of reasoning: in the fields of each protocol, and kept by a running server."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken

from rbee.models import synthetic
from rbee.sampling_params import ReasoningBudget
from rbee.server.errors import Refusal
from rbee.server.protocols.anthropic.reader import MessagesReader
from rbee.server.protocols.generating import Arrival
from rbee.server.protocols.openai.reader import RequestReader
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.output import ModelFormat
from tests.models.models_parts import TINY_CONFIG, tiny_weights
from tests.raw_client import CHAT, read_stream
from tests.server.protocols.parameters_parts import HI, MODEL, ready

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Server

MESSAGES = "/v1/messages"
BEGIN, END = 256, 257  # <think> and </think>
TOKENS = {"<think>": BEGIN, "</think>": END}
OPEN = "{{ messages[0].content }}<think>"
NOT_OPEN = "{{ messages[0].content }}"


def read(
    path: str, *, template: str = OPEN, tokens: dict[str, int] = TOKENS, parser: str = "qwen3", **fields: Any
) -> Any:
    """The budget that the engine gets, and the Warning header; of a model with these tokens."""
    model = dataclasses.replace(
        MODEL,
        chat_template=ChatTemplate(template, {}),
        output_format=ModelFormat("hermes", parser, tokens, tokens.get),
    )
    limits: dict[str, Any] = {"num_rings": 64, "ring_capacity": 1024, "lenient": False}
    body, engine = json.dumps(HI | {"max_tokens": 9} | fields).encode(), ready(vocab_size=300)
    asked: Any
    if path == CHAT:
        asked = RequestReader(model, **limits).read_chat(body, [], engine, 0)
    else:
        asked = MessagesReader(model, **limits).read(body, Arrival("r", [], 0, engine))
    headers = dict(asked.dialect.answer_headers)
    return asked.generation.sampling.reasoning_budget, headers.get(b"warning", b"").decode()


def enabled(tokens: int) -> dict[str, Any]:
    """Anthropic's."""
    return {"type": "enabled", "budget_tokens": tokens}


FIELDS: list[tuple[str, Callable[[int], dict[str, Any]], str]] = [
    (CHAT, lambda tokens: {"thinking_token_budget": tokens}, "thinking_token_budget"),
    (CHAT, lambda tokens: {"thinking_budget": tokens}, "thinking_budget"),
    (CHAT, lambda tokens: {"thinking_budget_tokens": tokens}, "thinking_budget_tokens"),
    (CHAT, lambda tokens: {"reasoning": {"max_tokens": tokens}}, "reasoning.max_tokens"),
    (MESSAGES, lambda tokens: {"thinking": enabled(tokens)}, "thinking.budget_tokens"),
]


@pytest.mark.parametrize(("path", "asking", "name"), FIELDS)
def test_every_field_asks_for_it(path, asking, name):
    """With the tags of the model, whether the prompt opens the reasoning or not; -1 is no limit."""
    for template, is_open in ((OPEN, True), (NOT_OPEN, False)):
        found, _ = read(path, template=template, **asking(5))
        assert found == ReasoningBudget(tokens=5, end_id=END, begin_ids=(BEGIN,), is_open=is_open)
    assert read(path, **asking(0))[0].tokens == 0
    assert read(path, **asking(-1))[0] is None
    assert read(path)[0] is None
    for number in (-2, 2**31):
        with pytest.raises(Refusal) as caught:
            read(path, **asking(number))
        assert caught.value.param == name
        assert name in caught.value.message


@pytest.mark.parametrize(("path", "asking", "name"), FIELDS)
@pytest.mark.parametrize(
    "model",
    [
        {"tokens": {}},
        {"tokens": {"</think>": END}, "template": NOT_OPEN},
        {"parser": "granite"},
        {"parser": "openai"},
        {"parser": "none"},
    ],
    ids=["letters", "an opener of letters", "phrases", "harmony", "no reasoning"],
)
def test_what_cannot_be_ended_is_advisory(path, asking, name, model):
    """Named in the header, by the field's usual name."""
    found, warning = read(path, **asking(5), **model)
    assert found is None
    usual = name if "." in name else "thinking_token_budget"
    assert usual in warning


def test_an_opener_is_not_needed_where_the_prompt_has_it():
    """The end alone is."""
    found, warning = read(CHAT, tokens={"</think>": END}, thinking_token_budget=5)
    assert (found, warning) == (ReasoningBudget(tokens=5, end_id=END, is_open=True), "")


@pytest.mark.parametrize("kind", ["adaptive", "disabled"])
def test_only_enabled_thinking_has_a_budget(kind):
    """In Messages; others name it as not followed."""
    found, warning = read(MESSAGES, thinking={"type": kind, "budget_tokens": 5})
    assert found is None
    assert "thinking.budget_tokens" in warning


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [5]}, "allowed_token_ids"),
        ({"min_tokens": 1, "stop_token_ids": [END]}, "min_tokens"),
        ({"reasoning": {"max_tokens": 4}}, "reasoning.max_tokens"),
        ({"thinking_budget": 4}, "thinking_budget"),
    ],
)
def test_what_contradicts_it_is_refused(fields, param):
    """Parameters that exclude the closing tag, and another number."""
    with pytest.raises(Refusal) as caught:
        read(CHAT, thinking_token_budget=5, **fields)
    assert caught.value.param == param
    read(CHAT, thinking_token_budget=5, allowed_token_ids=[5, END], min_tokens=1)
    read(CHAT, thinking_token_budget=-1, allowed_token_ids=[5])


# ---- a running server --------------------------------------------------------------------------------------------

LETTERS = [*range(97, 123)]
UNENDING: dict[str, Any] = {  # the model never ends its reasoning by itself, and writes nothing but letters
    "messages": [{"role": "user", "content": "a"}],
    "allowed_token_ids": [*LETTERS, END],
    "logit_bias": {str(END): -100},
    "temperature": 1.0,
    "seed": 3,
    "max_tokens": 30,
}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Any]) -> Iterator[Server]:
    """A server with a random model whose prompts open the reasoning, and whose tags are tokens."""
    path = tmp_path_factory.mktemp("models") / "thinker"
    path.mkdir()
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken(tag, special=True) for tag in TOKENS])
    tokenizer.save(str(path / "tokenizer.json"))
    save_file(tiny_weights(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(TINY_CONFIG))
    (path / "chat_template.jinja").write_text(OPEN + "{# </think> #}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RBEE_CACHE", str(path.parent / "cache"))
        with start_server(str(path)) as server:
            yield server


def post(server: Server, path: str, **fields: Any) -> Any:
    """The answer."""
    response = httpx.post(server.url + path, json=UNENDING | fields, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("tokens", [0, 1, 12])
def test_so_many_tokens_and_no_more(thinker, tokens):
    """Of each choice; they are those of an answer without a budget, and counted as reasoning."""
    more: dict[str, Any] = {"n": 3, "return_token_ids": True, "logprobs": True}
    free = post(thinker, CHAT, **more)
    limited = post(thinker, CHAT, thinking_token_budget=tokens, **more)
    for one, other in zip(limited["choices"], free["choices"], strict=True):
        assert END not in other["token_ids"]
        assert one["token_ids"][:tokens] == other["token_ids"][:tokens]
        assert one["token_ids"][tokens] == END
        assert one["token_ids"].count(END) == 1
        assert (one["message"]["reasoning"] or "") == other["message"]["reasoning"][:tokens]
        assert len(one["message"]["content"]) == 30 - tokens - 1
        assert len(one["logprobs"]["content"]) == 30
        assert one["finish_reason"] == "length"
    assert limited["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3 * tokens
    assert len({choice["message"]["content"] for choice in limited["choices"]}) == 3


@pytest.mark.anyio
async def test_streams_and_other_protocols(thinker):
    """The same output, piece by piece, and as Anthropic's blocks."""
    message = post(thinker, CHAT, thinking_token_budget=7)["choices"][0]["message"]
    body = UNENDING | {"thinking_token_budget": 7, "stream": True}
    *chunks, _ = await read_stream(thinker.address, CHAT, body)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    blocks = post(thinker, MESSAGES, thinking=enabled(7))["content"]
    assert [block.get("thinking", block.get("text")) for block in blocks] == [message["reasoning"], message["content"]]


def test_a_form_and_a_stop_string(thinker):
    """The answer behind the reasoning has its form, and an output ends at a stop string wherever that is."""
    [choice] = post(thinker, CHAT, thinking_token_budget=4, guided_choice=["yes", "no"])["choices"]
    assert (len(choice["message"]["reasoning"]), choice["finish_reason"]) == (4, "stop")
    assert choice["message"]["content"] in ("yes", "no")
    whole = post(thinker, CHAT, thinking_token_budget=4)["choices"][0]["message"]
    stopped = post(thinker, CHAT, thinking_token_budget=4, stop=whole["content"][5:8])["choices"][0]
    assert (stopped["message"]["reasoning"], stopped["finish_reason"]) == (whole["reasoning"], "stop")
    assert stopped["message"]["content"] == whole["content"][: whole["content"].index(whole["content"][5:8])]
