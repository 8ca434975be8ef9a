"""What of the output is shown, and what is listed beside it: stop strings, special tokens, ids, logprobs of prompts."""

from __future__ import annotations

import json

import httpx
import pytest
from tokenizers import AddedToken, processors

from rbee.models import synthetic
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.served_model import ServedModel
from rbee.server.text.tokenizer import TextCodec
from tests.fakes import RecordingEngine
from tests.raw_client import CHAT, COMPLETIONS, Client, read_stream, text_of
from tests.server.protocols.parameters_parts import BOTH, HI, PROMPT, ready
from tests.server.server_parts import expected, serving

pytestmark = pytest.mark.anyio

END, BOS, MARK = 256, 257, 258  # ids behind the bytes
HI_PROMPT = "user: hi\nassistant: "
NEVER = -9999.0


def special_model():
    """The synthetic vocabulary with three special tokens, one of which begins each text."""
    tokenizer = synthetic.tokenizer()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|end|>", "<|bos|>", "<|mark|>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", BOS)])
    template = ChatTemplate(synthetic.CHAT_TEMPLATE, {})
    return ServedModel("special", TextCodec(tokenizer), template, end_token_ids=frozenset({END}))


async def ask(token_id, route, *, stream=False, **fields):
    """The text and the choice of an answer that is this one token; the engine that was asked."""
    engine = RecordingEngine(ready(vocab_size=259), token_id=token_id)
    body = (HI if route == CHAT else PROMPT) | fields | {"stream": stream}
    async with serving(engine, special_model()) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post(route, json=body)
    assert response.status_code == 200, response.text
    if stream:
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        return text_of(events), events[0]["choices"][0], engine
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if route == CHAT else choice["text"], choice, engine


@pytest.mark.parametrize("stream", [False, True])
@BOTH
async def test_special_tokens_are_shown_by_their_names_on_request(route, stream):
    """But for the one that ends the answer, which needs include_stop_str_in_output too."""

    async def text(token_id, **fields):
        return (await ask(token_id, route, stream=stream, **fields))[0]

    assert await text(MARK) == ""
    assert await text(MARK, skip_special_tokens=False) == "<|mark|>"
    assert await text(MARK, skip_special_tokens=False, spaces_between_special_tokens=False) == "<|mark|>"
    assert await text(END, skip_special_tokens=False) == ""
    assert await text(END, include_stop_str_in_output=True) == ""
    assert await text(END, include_stop_str_in_output=True, skip_special_tokens=False) == "<|end|>"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("skip", [False, True])
async def test_special_tokens_of_an_echoed_prompt_are_shown(skip, stream):
    """Those that came as ids; those of the completion as the request says."""
    fields = {"prompt": [MARK, 97, END], "echo": True, "skip_special_tokens": skip}
    text, _, _ = await ask(MARK, COMPLETIONS, stream=stream, **fields)
    assert text == "<|mark|>a<|end|>" + ("" if skip else "<|mark|>")


async def test_special_tokens_around_a_text():
    """A completion has those of the tokenizer unless it says no, a chat only if it says yes."""

    async def prompt(route, **fields):
        _, _, engine = await ask(97, route, **fields)
        return [*memoryview(engine.submitted[0].prompt).cast("I")]

    assert await prompt(COMPLETIONS) == [BOS, *b"hi"]
    assert await prompt(COMPLETIONS, add_special_tokens=False) == [*b"hi"]
    assert await prompt(CHAT) == [*HI_PROMPT.encode()]
    assert await prompt(CHAT, add_special_tokens=True) == [BOS, *HI_PROMPT.encode()]


@pytest.mark.parametrize("stream", [False, True])
@BOTH
async def test_token_ids_are_listed_on_request(route, stream):
    """Of a token without text too, with those of the prompt; nothing else is."""
    _, choice, engine = await ask(MARK, route, stream=stream, return_token_ids=True)
    assert choice["token_ids"] == [MARK]
    assert choice.get("logprobs") is None
    if route == COMPLETIONS:
        assert choice["prompt_token_ids"] == [*memoryview(engine.submitted[0].prompt).cast("I")]
    _, choice, _ = await ask(MARK, route, stream=stream)
    assert "token_ids" not in choice
    assert "prompt_token_ids" not in choice


def post(server, route, **fields):
    """An answer of the synthetic model that is not streamed."""
    body = (HI if route == CHAT else PROMPT) | fields
    response = httpx.post(server.url + route, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


async def test_token_ids_of_a_whole_answer(synthetic_server):
    """Each token is in the chunk that shows it, and the prompt's are in the first one; an echo adds none."""
    ids = [*expected(HI_PROMPT, 5).encode()]
    answer = post(synthetic_server, CHAT, max_tokens=5, return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == ids
    assert answer["prompt_token_ids"] == [*HI_PROMPT.encode()]
    body = HI | {"max_tokens": 5, "return_token_ids": True}
    *chunks, _ = await read_stream(synthetic_server.address, CHAT, body)
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[token_id] for token_id in ids]
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[*HI_PROMPT.encode()], *[None] * 4]
    echoed = post(synthetic_server, COMPLETIONS, max_tokens=3, return_token_ids=True, echo=True, logprobs=0)
    [choice] = echoed["choices"]
    assert choice["token_ids"] == [*expected("hi", 3).encode()]
    assert choice["logprobs"]["tokens"] == list("hi" + expected("hi", 3))


async def test_a_stop_string_can_be_a_part_of_the_answer(synthetic_server):
    """It ends the text instead of being cut off, and no letter of it waits for the next one."""
    text = expected("hi", 20)
    body = PROMPT | {"max_tokens": 20, "stop": ["\x00", text[5:8]], "include_stop_str_in_output": True}
    [choice] = post(synthetic_server, COMPLETIONS, **body)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (text[:8], "stop")
    *chunks, done = await read_stream(synthetic_server.address, COMPLETIONS, body)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [*text[:8]]
    *chunks, _ = await read_stream(synthetic_server.address, COMPLETIONS, body | {"include_stop_str_in_output": False})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[:5]


async def test_a_stop_token_can_be_a_part_of_the_answer(synthetic_server):
    """Its text ends the answer."""
    text = expected("hi", 20)
    end = text.index(text[5])
    for include, shown in ((False, text[:end]), (True, text[: end + 1])):
        body = PROMPT | {"stop_token_ids": [ord(text[5])], "include_stop_str_in_output": include, "max_tokens": 20}
        answer = post(synthetic_server, COMPLETIONS, **body)
        assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (shown, "stop")
        assert answer["usage"]["completion_tokens"] == end + 1
        assert text_of(await read_stream(synthetic_server.address, COMPLETIONS, body)) == shown


def test_prompt_logprobs_as_vllm_lists_them(synthetic_server):
    """By id: the token that is there, then the most likely ones; the first token follows nothing."""
    scored = post(synthetic_server, COMPLETIONS, prompt="abc", max_tokens=1, prompt_logprobs=2)
    first, *others = scored["choices"][0]["prompt_logprobs"]
    assert first is None
    for character, listed in zip("bc", others, strict=True):
        own, other = listed.items()
        assert own == (str(ord(character)), {"logprob": 0.0, "rank": 1, "decoded_token": character})
        assert other == ("0", {"logprob": NEVER, "rank": 2, "decoded_token": "\x00"})
    assert scored["choices"][0]["logprobs"] is None
    chat = post(synthetic_server, CHAT, max_tokens=1, prompt_logprobs=0)
    listed = chat["prompt_logprobs"]
    assert "prompt_logprobs" not in chat["choices"][0]
    assert [*listed[1]] == [str(ord("s"))]
    assert listed[1]["115"] == {"logprob": 0.0, "rank": 1, "decoded_token": "s"}
    assert len(listed) == len(HI_PROMPT)
    assert post(synthetic_server, CHAT, max_tokens=1)["prompt_logprobs"] is None


@pytest.mark.parametrize(("of_prompt", "of_all"), [(3, 1), (1, 3)])
def test_prompt_logprobs_beside_an_echo(synthetic_server, of_prompt, of_all):
    """Each list has as many tokens as it was asked for; each prompt has its own."""
    body = {"prompt": ["ab", "cde"], "max_tokens": 1, "echo": True, "logprobs": of_all, "prompt_logprobs": of_prompt}
    for choice, prompt in zip(post(synthetic_server, COMPLETIONS, **body)["choices"], ("ab", "cde"), strict=True):
        assert [len(listed or ()) for listed in choice["prompt_logprobs"]] == [0] + [of_prompt] * (len(prompt) - 1)
        assert [len(top or ()) for top in choice["logprobs"]["top_logprobs"]] == [0] + [of_all] * len(prompt)
        assert choice["text"] == prompt + expected(prompt, 1)


def test_the_synthetic_model_can_be_confined(synthetic_server):
    """To some tokens, or to those that do not end the answer; what it draws then depends on the seed alone."""
    allowed = {"allowed_token_ids": [65, 66, 67], "max_tokens": 30, "seed": -5}
    texts = [post(synthetic_server, COMPLETIONS, **allowed)["choices"][0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    assert set(texts[0]) == {"A", "B", "C"}
    text = expected("hi", 4)
    answer = post(synthetic_server, COMPLETIONS, stop_token_ids=[ord(text[0])], min_tokens=2, max_tokens=4)
    assert answer["usage"]["completion_tokens"] >= 2


async def test_odd_parameters_of_a_real_model(default_server):
    """A negative seed draws the same each time; a top_p of 0 takes the most likely token at any temperature."""
    body = {"prompt": "The bee", "max_tokens": 12}

    def text(**fields):
        answer = httpx.post(default_server.url + COMPLETIONS, json=body | fields, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]

    assert text(seed=-1, temperature=1.2) == text(seed=-1, temperature=1.2)
    assert text(top_p=0, temperature=5) == text(temperature=0) == text(top_p=0.0)
    async with Client(default_server.address) as client:
        events = await client.read(COMPLETIONS, body | {"seed": -(2**63), "temperature": 3.5})
    assert text_of(events) == text(seed=-(2**63), temperature=3.5)
