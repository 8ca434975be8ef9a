"""GGUF files served as they are, whole: one file and several, by both runners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.models_parts import write_tiny_gguf
from tests.raw_client import COMPLETIONS, Client

pytestmark = pytest.mark.anyio


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The same tiny model in one file and in several, any of which names it; and an empty cache."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    write_tiny_gguf(tmp_path / "shards.gguf", tensors_per_file=7)
    shards = sorted(tmp_path.glob("shards-0*.gguf"))
    assert len(shards) == 3
    return [whole, shards[1]]


def loaded(pid, word):
    """Whether a process has mapped a library whose path has this word."""
    return word in Path(f"/proc/{pid}/maps").read_text()


async def answer(server, prompt):
    """The ids of 16 greedy tokens, and the prompt's."""
    async with Client(server.address) as client:
        body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 0, "ignore_eos": True, "echo": True}
        stream = await client.open(COMPLETIONS, body)
        assert stream.status == 200
        whole = await stream.reader.readexactly(int(stream.headers["content-length"]))
    [choice] = json.loads(whole)["choices"]
    return choice["logprobs"]["tokens"]


async def test_one_file_and_several_are_the_same_model(models, start_server):
    """Natively: neither process has torch, nothing but small files is on the disk, and the tokens are torch's."""
    answers = []
    for model in models:
        with start_server(str(model), "--exact", "--kv-cache-mib", "4") as server:
            answers.append(await answer(server, "abab  12"))
            assert not loaded(server.pid, "libtorch")
            assert not loaded(server.engine.pid, "libtorch")
            assert not loaded(server.engine.pid, ".gguf")
    with start_server(str(models[1]), "--runner", "torch", "--kv-cache-mib", "4") as server:
        assert loaded(server.engine.pid, "libtorch")
        answers.append(await answer(server, "abab  12"))
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 16 + 5
    cache = models[0].parent / "cache"
    assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 50_000]
