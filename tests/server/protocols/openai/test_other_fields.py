"""Fields that are not followed, in answers of a running server: named in a header, refused, or ignored on request."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import openai
import pytest

from rbee.messages import Ready
from rbee.server.protocols.openai.fingerprint import system_fingerprint
from rbee.server.text.chat_template import ChatTemplate
from tests.fakes import RecordingEngine
from tests.raw_client import CHAT, COMPLETIONS, read_stream
from tests.server.protocols.parameters_parts import BOTH, HI, MODEL, PROMPT, ready
from tests.server.server_parts import serving

pytestmark = pytest.mark.anyio

ADVISORY = {"user": "me", "store": True, "service_tier": "flex", "prompt_cache_key": "sess-1", "verbosity": "low"}


@pytest.fixture(scope="module")
def lenient_server(start_server):
    """It ignores what it may."""
    return start_server("--model", "synthetic", "--synthetic-step-ms", "1", "--lenient")


def post(server, path, body, **headers):
    """The response to this body."""
    return httpx.post(server.url + path, json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("stream", [False, True])
@BOTH
def test_advisory_fields_are_named_in_a_header(synthetic_server, lenient_server, route, stream):
    """The answer is what it is without them; a request that has none has no such header."""
    body = (HI if route == CHAT else PROMPT) | {"max_tokens": 4, "stream": stream}
    for server in (synthetic_server, lenient_server):
        answer = post(server, route, body | ADVISORY)
        assert answer.status_code == 200, answer.text
        assert answer.headers["warning"] == f'299 - "ignored: {", ".join(ADVISORY)}"'
        plain = post(server, route, body)
        assert "warning" not in plain.headers
        if not stream:
            assert answer.json()["choices"] == plain.json()["choices"]


def test_a_conversation_as_clients_send_it_back(synthetic_server):
    """What the messages of earlier answers carry is named by its kind, once."""
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "reasoning_content": "Hm.",
    }
    messages = [
        *HI["messages"],
        turn | {"id": "a"},
        *HI["messages"],
        turn | {"id": "b", "timestamp": 1},
        *HI["messages"],
    ]
    answer = post(synthetic_server, CHAT, {"messages": messages, "max_tokens": 1})
    assert answer.status_code == 200, answer.text
    named = ["annotations", "reasoning_content", "id", "timestamp"]
    assert answer.headers["warning"] == f'299 - "ignored: {", ".join(f"messages[].{name}" for name in named)}"'


@pytest.mark.parametrize(
    ("fields", "strict", "lenient"),
    [
        ({"temprature": 1}, "unknown_parameter", None),
        ({"mirostat": 2}, "unsupported_parameter", None),
        ({"length_penalty": 2}, "unsupported_parameter", None),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter", "unsupported_parameter"),
        ({"guided_whitespace_pattern": " "}, "unsupported_parameter", None),
    ],
)
def test_what_would_change_the_answer(synthetic_server, lenient_server, fields, strict, lenient):
    """Is refused by name; a lenient server ignores it if the answer stays of the same kind."""
    body = HI | {"max_tokens": 1} | fields
    [name] = fields
    for server, code in ((synthetic_server, strict), (lenient_server, lenient)):
        answer = post(server, CHAT, body)
        if code is None:
            assert (answer.status_code, answer.headers["warning"]) == (200, f'299 - "ignored: {name}"')
        else:
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (400, name, code)


class TestTemplateFields:
    """enable_thinking and reasoning_effort are the chat template's business."""

    @staticmethod
    async def prompt(source, **fields):
        """What the engine gets, and the header."""
        engine = RecordingEngine(ready(), token_id=ord("!"))
        model = MODEL.__class__("m", MODEL.codec, ChatTemplate(source, {}), frozenset())
        async with serving(engine, model) as url, httpx.AsyncClient(base_url=url) as client:
            answer = await client.post(CHAT, json=HI | fields)
        assert answer.status_code == 200, answer.text
        ids = memoryview(engine.submitted[0].prompt).cast("I")
        return bytes([*ids]).decode(), answer.headers.get("warning")

    async def test_one_that_knows_them_gets_them(self):
        """What chat_template_kwargs says of them comes first."""
        source = "{{ enable_thinking }}{{ reasoning_effort }}"
        assert await self.prompt(source, enable_thinking=False, reasoning_effort="low") == ("Falselow", None)
        own = {"enable_thinking": True}
        assert await self.prompt(source, enable_thinking=False, chat_template_kwargs=own) == ("True", None)

    async def test_others_cannot_follow_them(self):
        """They are named in the header."""
        named = '299 - "ignored: enable_thinking, reasoning_effort"'
        assert await self.prompt("hi", enable_thinking=False, reasoning_effort="low") == ("hi", named)


async def test_answers_say_what_their_tokens_depend_on(synthetic_server):
    """The same word in whole answers and in every chunk, of both routes; and the members that other servers have."""
    answers = [post(synthetic_server, CHAT, HI | {"max_tokens": 2}), post(synthetic_server, COMPLETIONS, PROMPT)]
    fingerprint = answers[0].json()["system_fingerprint"]
    assert fingerprint.startswith("rbee-")
    assert answers[1].json()["system_fingerprint"] == fingerprint
    for path, body in ((CHAT, HI), (COMPLETIONS, PROMPT)):
        options = {"max_tokens": 2, "stream_options": {"include_usage": True}}
        *chunks, _ = await read_stream(synthetic_server.address, path, body | options)
        assert {chunk["system_fingerprint"] for chunk in chunks} == {fingerprint}
    assert answers[0].json()["choices"][0]["message"]["refusal"] is None
    with openai.OpenAI(base_url=f"{synthetic_server.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(
            model="synthetic", messages=[{"role": "user", "content": "x"}], max_tokens=1
        )
    assert (chat.system_fingerprint, chat.choices[0].message.refusal) == (fingerprint, None)


def test_a_fingerprint_has_all_that_decides_the_tokens():
    """Model, runner, device, precision and kernels; not where or how large the cache is."""
    engine = ready()
    base = system_fingerprint("m", engine)

    def differs(**values):
        known = {name: getattr(engine, name) for name in engine.__struct_fields__}
        return system_fingerprint("m", Ready(**known | values)) != base

    assert system_fingerprint("n", engine) != base
    assert all(differs(**{name: "other"}) for name in ("runner", "device", "dtype", "kernels"))
    assert not differs(num_blocks=1, max_model_len=7, load_seconds=9.0)


def test_cards_have_what_benchmarks_ask_for(synthetic_server):
    """`vllm bench serve` reads root, SGLang's clients parent too."""
    card = httpx.get(synthetic_server.url + "/v1/models/synthetic").json()
    assert (card["root"], card["parent"]) == ("synthetic", None)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "GZIP"])
def test_encoded_bodies_are_refused_by_name(synthetic_server, encoding):
    """Before anybody looks for JSON in them; one that is encoded as it is counts as plain."""
    body = json.dumps(PROMPT | {"max_tokens": 1}).encode()
    url, headers = synthetic_server.url + COMPLETIONS, {"Content-Type": "application/json"}
    refused = httpx.post(url, content=gzip.compress(body), headers=headers | {"Content-Encoding": encoding})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (415, "unsupported_content_encoding")
    assert encoding.lower() in error["message"]
    assert httpx.post(url, content=body, headers=headers | {"Content-Encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/chat/completions", "/v1/chat/completions"),
        ("GET", "/models", "/v1/models"),
        ("GET", "/models/x", "/v1/models/x"),
        ("POST", "/v1/v1/completions", "/v1/completions"),
        ("POST", "/v1/completions/", "/v1/completions"),
        ("GET", "/completions", None),
        ("GET", "/nothing", None),
        ("GET", "/v1/chat/completions/chatcmpl-1", None),
        ("POST", "/v1/chat/completions/render", None),
    ],
)
def test_a_base_url_that_is_not_right(synthetic_server, method, path, meant):
    """Is a 404 that names the route that was meant, if there is one."""
    answer = httpx.request(method, synthetic_server.url + path, headers={"Content-Type": "application/json"})
    assert answer.status_code == 404
    expected = f"There is no route {path}." + (f" Did you mean {meant}?" if meant else "")
    assert answer.json()["error"]["message"] == expected
