"""The default model, whole: real clients read a real model's tokens from a real server, and they are the right ones."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, TypeVar

import openai
import pytest

from rbee.config import DEFAULT_MODEL
from rbee.transport.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openai.types.chat import ChatCompletionMessageParam

    from tests.conftest import Server

_Chunk = TypeVar("_Chunk")

_TOKENS = 32

_LONG = " ".join(
    f"Chapter {number}: the ship left harbour at dawn, and the crew counted stars." for number in range(60)
)

PROMPTS: dict[str, list[ChatCompletionMessageParam]] = {
    "ascii": [{"role": "user", "content": "Write one sentence about the sea."}],
    "question": [{"role": "user", "content": "What is the capital of France?"}],
    "cjk": [{"role": "user", "content": "请用一句话介绍北京。日本語も少し。"}],
    "emoji": [{"role": "user", "content": "Tell a story about 🎉, 🚀 and 👩‍👩‍👧."}],
    "long": [{"role": "user", "content": _LONG + " Summarize."}],
    "empty system": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}],
    "digits and code": [{"role": "user", "content": "def f(x):\n    return x * 12345 + 67.890\n\tExplain."}],
    "several turns": [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada."},
        {"role": "user", "content": "What is my name?"},
    ],
}


@pytest.fixture
def client(default_server):
    """The real OpenAI client, as users make it."""
    with openai.OpenAI(base_url=f"{default_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module", params=["--exact", "--runner=torch"])
def exact_client(request, start_server):
    """The same for a server that computes in float32."""
    with (
        start_server(request.param) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def reference(default_model):
    """Prompt length and greedy text of every prompt, from transformers.generate on the same dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(default_model.path)
    model: Any = AutoModelForCausalLM.from_pretrained(default_model.path, gguf_file="model.gguf", dtype=torch.float32)
    answers = {}
    for name, messages in PROMPTS.items():
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=_TOKENS)
        prompt_tokens = inputs["input_ids"].shape[1]
        answers[name] = (prompt_tokens, tokenizer.decode(output[0, prompt_tokens:], skip_special_tokens=True))
    return answers


def _greedy(client: openai.OpenAI, name: str) -> tuple[int, str | None]:
    answer = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=PROMPTS[name], temperature=0, max_tokens=_TOKENS
    )
    return answer.usage.prompt_tokens, answer.choices[0].message.content


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_alone_equals_transformers(exact_client, reference, name):
    """A prompt that runs alone yields the tokens that transformers.generate yields."""
    assert _greedy(exact_client, name) == reference[name]


def _greedy_together(client: openai.OpenAI) -> dict[str, tuple[int, str | None]]:
    """The answers to all prompts, asked for twice at the same time."""
    names = list(PROMPTS) * 2
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: _greedy(client, name), names))
    assert answers[: len(PROMPTS)] == answers[len(PROMPTS) :]
    return dict(zip(names, answers, strict=True))


def test_greedy_together_equals_transformers(exact_client, reference):
    """All prompts running in the same batches, started twice over, yield the same tokens as alone."""
    assert _greedy_together(exact_client) == reference


def test_greedy_together_equals_alone(client):
    """So they do with activations in 8 bits, whose tokens are not transformers': nobody's depend on who runs beside."""
    assert _greedy_together(client) == {name: _greedy(client, name) for name in PROMPTS}


def test_seeded_sampling_is_the_same_beside_others(client):
    """A request with a seed yields the same text alone and beside requests with other seeds, which yield others."""

    def sampled(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=DEFAULT_MODEL,
            messages=PROMPTS["ascii"],
            seed=seed,
            temperature=0.9,
            top_p=0.95,
            max_tokens=24,
            extra_body={"top_k": 50},
        )
        text: str | None = answer.choices[0].message.content
        return text

    alone = sampled(1)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(sampled, [1, 2, 3, 4]))
    assert together[0] == alone
    assert len(set(together)) == 4


def _read_beside_a_stopped_engine(server: Server, start: Callable[[], Iterator[_Chunk]]) -> list[_Chunk]:
    """All chunks of a stream of 64 tokens, read while the engine is stopped, again and again.

    The engine runs until it has committed two tokens that the client has not read. Then it is stopped, and the client
    reads all but the last token it has committed: no later token can be what brings them. The last one may still lack
    its wakeup, because the engine can be stopped between the two.
    """
    read: list[_Chunk] = []
    with Observer(server.pid) as observer:
        while _counters(observer)["rings_in_use"]:
            time.sleep(0.001)
        before = _counters(observer)["tokens"]
        with server.stopped_engine():
            chunks = start()
        while (committed := _counters(observer)["tokens"] - before) < 64:
            if committed < len(read) + 2:
                time.sleep(0.001)
                continue
            with server.stopped_engine():
                while len(read) < _counters(observer)["tokens"] - before - 1:
                    read.append(next(chunks))
    return [*read, *chunks]


def _counters(observer: Observer) -> dict[str, int]:
    sample = observer.sample()
    assert sample is not None
    return sample.counters


def test_openai_client_reads_each_token_when_it_is_made(client, default_server):
    """64 tokens reach the openai client as 64 chunks, each without the help of a later one."""

    def start() -> Iterator[openai.types.chat.ChatCompletionChunk]:
        return iter(
            client.chat.completions.create(
                model=DEFAULT_MODEL,
                messages=[{"role": "user", "content": "Write a long story about a lighthouse keeper."}],
                temperature=0,
                max_tokens=64,
                stream=True,
            )
        )

    chunks = _read_beside_a_stopped_engine(default_server, start)
    assert len(chunks) == 64
    assert all(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_curl_reads_each_token_when_it_is_made(default_server):
    """The same with `curl -N`: frames come out of its pipe one by one, each a `data:` line followed by a blank one."""
    payload = {"model": DEFAULT_MODEL, "prompt": "Once upon a time", "max_tokens": 64, "temperature": 0, "stream": True}
    command = ["curl", "-sN", f"{default_server.url}/v1/completions", "-H", "Content-Type: application/json"]
    rests = []

    def frames(pipe: IO[bytes]) -> Iterator[bytes]:
        pending = b""
        while piece := pipe.read(65536):
            *complete, pending = (pending + piece).split(b"\n\n")
            yield from complete
        rests.append(pending)

    with contextlib.ExitStack() as stack:

        def start() -> Iterator[bytes]:
            curl = subprocess.Popen([*command, "-d", json.dumps(payload)], stdout=subprocess.PIPE, bufsize=0)
            stdout = stack.enter_context(curl).stdout
            assert stdout is not None
            return frames(stdout)

        *chunks, done = _read_beside_a_stopped_engine(default_server, start)
    assert rests == [b""]
    assert done == b"data: [DONE]"
    assert len(chunks) == 64
    assert all(json.loads(chunk.removeprefix(b"data: "))["choices"][0]["text"] for chunk in chunks)
