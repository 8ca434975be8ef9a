"""NativeRunner in an engine: quantized weights, sampling, scores, spoilt numbers, limits, and its process."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from rbee import messages
from rbee.config import EngineConfig
from rbee.engine.runners.native.runner import NativeRunner
from rbee.engine.runners.native.spec import read_spec
from rbee.errors import ConfigError, ModelError
from rbee.messages import SIDE_RECORD, FinishReason
from tests.engine.engine_parts import InProcessEngine, engine_process
from tests.engine.runners.native.native_parts import INSTRUCTION_SETS, take_weights
from tests.engine.runners.native.weights_parts import load as load_weights
from tests.engine.runners.tiny_models import (
    NATIVE_ARCHITECTURES,
    SIXTEEN,
    Architecture,
    answer,
    cache_size,
    load_native,
    make_model,
)

if TYPE_CHECKING:
    from tests.engine.engine_parts import Request

PROMPTS = [np.random.default_rng(3).integers(1, 211, count).tolist() for count in (1, 5, 17, 40, 64)]
MODES: dict[str, dict[str, Any]] = {"exact": {"exact": True}, "q4": {"exact": False, "quantize": "q4"}}
MARGIN = 1e-3  # of the closest call; logits come from another order of additions than transformers'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder for packed weights."""
    monkeypatch.setenv("RBEE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a small Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    make_model(folder, NATIVE_ARCHITECTURES["llama"])
    return folder


def native(folder: Path, **options: Any) -> NativeRunner:
    """As `load_native`, but nothing is decided yet."""
    defaults = {"quantize": "none", "exact": True, "threads": 2, "on_loading": lambda *_: None}
    cache, others = cache_size(options)
    spec = read_spec(json.loads((folder / "config.json").read_bytes()))
    return NativeRunner(folder, spec, cache, **{**defaults, **others})


def greedy(runner: NativeRunner, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """24 tokens for all prompts submitted together."""
    with InProcessEngine(runner, **options) as engine:
        requests = [engine.submit(prompt, max_tokens=24) for prompt in prompts]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.LENGTH}
        engine.assert_at_baseline()
        return [request.tokens for request in requests]


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", ["q8", "q4"])
@pytest.mark.parametrize("name", ["llama", "qwen2, upper layers with windows", "gemma3"])
def test_exact_tokens_of_quantized_weights(tmp_path, name, quantize):
    """Exact mode yields what transformers generates with the numbers that the quantized weights stand for."""
    model = make_model(tmp_path / "model", NATIVE_ARCHITECTURES[name])
    take_weights(model, load_weights(tmp_path / "model", quantize=quantize))
    answers = [answer(model, prompt, 24) for prompt in PROMPTS]
    assert min(each.margin for each in answers) > MARGIN, "a call this close may go either way: take another seed"
    runner = load_native(tmp_path / "model", quantize=quantize)
    assert greedy(runner, PROMPTS) == [each.tokens for each in answers]


@pytest.mark.parametrize("mode", MODES)
def test_block_size_changes_no_token(llama, mode):
    """Whether blocks are larger or smaller than the kernels' tiles of 16 positions, or do not consist of whole ones."""

    def tokens(block_size: int) -> list[list[int]]:
        return greedy(
            native(llama, block_size=block_size, kv_cache_mib=16, **MODES[mode]), PROMPTS, block_size=block_size
        )

    assert [size for size in (1, 7, 32, 48) if tokens(size) != tokens(16)] == []


@pytest.mark.parametrize("mode", MODES)
def test_sampled_tokens_are_the_same_alone_and_beside_others(llama, mode):
    """A seeded request yields the same tokens alone, batched, in chunks, and after a preemption."""
    runner = load_native(llama, **MODES[mode])
    prompts = [list(range(1, 20)), list(range(30, 80)), list(range(90, 140))]
    results = []
    cases: list[tuple[int, dict[str, Any]]] = [
        (1, {}),
        (3, {}),
        (3, {"max_num_batched_tokens": 7}),
        (3, {"num_blocks": 8}),
    ]
    for count, options in cases:
        with InProcessEngine(runner, **options) as engine:
            requests = [
                engine.submit(prompt, max_tokens=25, temperature=0.9, top_k=50, top_p=0.9, seed=n)
                for n, prompt in reversed(list(enumerate(prompts[:count])))
            ]
            engine.run()
            assert (engine.scheduler.num_preemptions > 0) == ("num_blocks" in options)
            results.append(requests[-1].tokens)
    assert len(set(results[0])) > 10
    assert results == [results[0]] * 4


# ---- scores ----------------------------------------------------------------------------------------------------------


def logprobs_of(folder: Path, tokens: list[int]) -> np.ndarray:
    """Those that transformers gives all tokens behind each of these, [length, vocab]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0], -1).numpy()


def records_of(request: Request) -> list[tuple[int, bool, float]]:
    """Token, whether it is a side record, and logprob."""
    pairs = zip(request.tokens, request.logprobs, strict=True)
    return [(token & ~SIDE_RECORD, bool(token & SIDE_RECORD), logprob) for token, logprob in pairs]


def expected_records(logprobs: np.ndarray, token: int, count: int, *, side: bool) -> list[tuple[int, bool, float]]:
    """Of a token, or its rank, at the place of these logprobs [vocab], and of the `count` most likely ones."""
    best = np.argsort(-logprobs)[:count]
    own = 1 + int((logprobs > logprobs[token]).sum()) if side else token
    return [(own, side, logprobs[token]), *((int(other), True, logprobs[other]) for other in best)]


def assert_records(records: list[tuple[int, bool, float]], wanted: list[tuple[int, bool, float]]) -> None:
    """The same tokens in the same order, with the same logprobs but for rounding."""
    assert [record[:2] for record in records] == [record[:2] for record in wanted]
    assert [record[2] for record in records] == pytest.approx([record[2] for record in wanted], abs=1e-3)


def test_logprobs_are_those_of_the_model(llama):
    """Of each token and of the three most likely ones at its place, also if others may be drawn only."""
    prompt, allowed = PROMPTS[2], tuple(range(3, 200, 9))
    with InProcessEngine(load_native(llama)) as engine:
        requests = {
            None: engine.submit(prompt, num_logprobs=3),
            allowed: engine.submit(prompt, num_logprobs=3, allowed_token_ids=allowed),
        }
        engine.run()
    for choice, request in requests.items():
        tokens = [token for token in request.tokens if not token & SIDE_RECORD]
        logprobs = logprobs_of(llama, prompt + tokens)[len(prompt) - 1 : -1]
        best = logprobs if choice is None else np.where(np.isin(np.arange(211), choice), logprobs, -np.inf)
        assert tokens == best.argmax(-1).tolist()
        wanted = [expected_records(row, token, 3, side=False) for row, token in zip(logprobs, tokens, strict=True)]
        assert_records(records_of(request), [record for records in wanted for record in records])


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 7}])
def test_a_prompt_is_scored(llama, options):
    """Each of its tokens but the first, also in chunks and beside others; and a request for its prompt alone."""
    prompt = PROMPTS[3]
    with InProcessEngine(load_native(llama), **options) as engine:
        beside = engine.submit(PROMPTS[2], max_tokens=20)
        request = engine.submit(prompt, max_tokens=2, num_prompt_logprobs=2, num_logprobs=0)
        engine.run()
        assert beside.finish == request.finish == FinishReason.LENGTH
    tokens = [token for token in request.tokens if not token & SIDE_RECORD]
    logprobs = logprobs_of(llama, prompt + tokens)
    wanted = [expected_records(logprobs[i], token, 2, side=True) for i, token in enumerate(prompt[1:])]
    wanted += [expected_records(logprobs[len(prompt) - 1 + i], token, 0, side=False) for i, token in enumerate(tokens)]
    assert_records(records_of(request), [record for records in wanted for record in records])


# ---- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_not_a_number_in_one_request_does_not_reach_another(llama, tmp_path, mode, spoilt):
    """A sequence whose keys and values are NaN fails alone, and so does nobody that gets its blocks later."""
    folder = shutil.copytree(llama, tmp_path / "spoilt")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][13, 3] = spoilt
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    healthy, sick = [5, 6, 7], [13] * 30
    others = {"max_tokens": 20, "allowed_token_ids": tuple(token for token in range(211) if token != 13)}
    with InProcessEngine(load_native(folder, **MODES[mode]), num_blocks=16) as engine:
        alone = engine.submit(healthy, **others)
        engine.run()
        assert alone.finish == FinishReason.LENGTH
        beside = engine.submit(healthy, **others)
        failed = engine.submit(sick)
        longer = engine.submit(sick * 3, **others)
        engine.run()
        assert failed.finish == longer.finish == FinishReason.ERROR
        assert (failed.tokens, longer.tokens) == ([], [])
        after = [engine.submit([*healthy, *range(20, 20 + n)], **others) for n in range(0, 12, 3)]
        again = engine.submit(healthy, **others)
        engine.run()
        assert beside.tokens == again.tokens == alone.tokens
        assert {request.finish for request in after} == {FinishReason.LENGTH}
        engine.assert_at_baseline()


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_max_model_len_and_pool_size(llama, caplog):
    """The cache bounds max_model_len: lowered with a log line when it was not asked for, refused when it was."""
    assert load_native(llama).max_model_len == SIXTEEN["max_position_embeddings"]
    assert load_native(llama, max_model_len=100, max_num_seqs=3).num_blocks == 3 * 7
    with pytest.raises(ConfigError, match=r"^--max-model-len 257 is more than the 256 tokens .*\.$"):
        load_native(llama, max_model_len=257)
    folder = llama.parent / "long"
    config = {**SIXTEEN, "max_position_embeddings": 10_000}
    make_model(folder, Architecture(lambda: transformers.LlamaConfig(**config)))
    with pytest.raises(ConfigError, match=r"^--max-model-len 9000 does not fit --kv-cache-mib 1, .*\.$"):
        load_native(folder, max_model_len=9000, kv_cache_mib=1)
    assert caplog.text == ""
    runner = load_native(folder, kv_cache_mib=1)
    assert runner.max_model_len == runner.num_blocks * 16 < 10_000
    assert "instead of the model's own 10000" in caplog.text


def test_a_sequence_may_be_as_long_as_the_cache(llama):
    """The last token of the last block is computed as well."""
    runner = load_native(llama, max_num_seqs=1)
    assert runner.num_blocks * 16 == runner.max_model_len == 256
    with InProcessEngine(runner) as engine:
        prompt = np.random.default_rng(1).integers(1, 211, 250).tolist()
        request = engine.submit(prompt, max_tokens=100)
        engine.run()
        assert (len(request.tokens), request.finish) == (6, FinishReason.LENGTH)
    best = logprobs_of(llama, prompt + request.tokens)[249:-1].argmax(-1)
    assert request.tokens == best.tolist()


def test_blocks_before_every_window_are_given_up(tmp_path):
    """The tokens are those that come with all blocks kept, alone and beside others that take what has become free."""
    config = transformers.MistralConfig(**{**SIXTEEN, "max_position_embeddings": 1024}, sliding_window=40)
    make_model(tmp_path / "model", Architecture(lambda: config, scale=0.3))
    runner = load_native(tmp_path / "model", kv_cache_mib=2)
    assert runner.window == 40
    prompts = [np.random.default_rng(seed).integers(1, 211, count).tolist() for seed, count in enumerate((30, 300, 90))]
    answers = []
    for window in (0, runner.window):
        runner.window = window
        with InProcessEngine(runner, max_num_batched_tokens=70) as engine:
            requests = [engine.submit(prompt, max_tokens=150) for prompt in prompts]
            for _ in range(100):
                engine.core.step()
                engine.rings.drain()
            held = engine.scheduler.block_manager.num_blocks - engine.scheduler.block_manager.num_free
            engine.run()
            answers.append([request.tokens for request in requests])
            assert engine.scheduler.block_manager.num_free == engine.scheduler.block_manager.num_blocks
        # 40 positions lie in four blocks at most, with the next token's.
        assert held <= 3 * 4 if window else held > 30
    assert answers[0] == answers[1]


def test_a_cache_in_16_bits_holds_twice_as_much(llama):
    """Exact mode takes 32 for a number, the default 16."""
    exact, default = (load_native(llama, exact=exact, kv_cache_mib=1).num_blocks for exact in (True, False))
    assert default // 2 == exact == (1 << 20) // (3 * 2 * 2 * 16 * 16 * 4)  # layers, K and V, heads, head_dim, tokens


def test_a_cache_in_8_bits_holds_nearly_twice_as_much_again(llama):
    """Each token and head has scales besides: here two for 16 dimensions of a key and a value."""
    half, bytes_ = (load_native(llama, exact=False, kv_cache=kind, kv_cache_mib=1) for kind in ("f16", "q8"))
    assert bytes_.num_blocks == (1 << 20) // (3 * 2 * 2 * 16 * (16 + 2))
    assert bytes_.num_blocks / half.num_blocks == pytest.approx(32 / 18, rel=0.01)
    assert bytes_.dtype == f"{half.dtype}, q8 KV cache"


def test_a_cache_without_room_for_a_block_is_a_sentence(llama):
    """The message names the option and the model."""
    with pytest.raises(ModelError, match=r"^--kv-cache-mib 1 is too little for a single block of .*/llama\.$"):
        native(llama, block_size=2048, kv_cache_mib=1)


def test_a_cache_that_does_not_fit_in_memory_is_a_sentence(llama):
    """The message names the option and what to do."""
    with pytest.raises(ConfigError, match=r"/llama needs 1 MiB for its weights and \d+ MiB for its KV cache, and \d+ "):
        load_native(llama, kv_cache_mib=1 << 36, max_num_seqs=1 << 44)


# ---- what it is made of ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"exact": True}, "float32 weights, float32 activations"),
        ({"exact": False}, "float32 weights, float32 activations"),
        ({"exact": False, "quantize": "q8"}, "q8 weights, int8 activations"),
        ({"exact": False, "quantize": "q4"}, "q4 weights, int8 activations"),
        ({"exact": True, "quantize": "q4"}, "q4 weights, float32 activations"),
    ],
)
def test_it_says_what_it_computes_with(llama, options, dtype):
    """The format of most weights, and that of activations."""
    runner = load_native(llama, **options)
    assert (runner.name, runner.device, runner.dtype) == ("native", "cpu", dtype)


def test_instruction_set_is_the_best_unless_another_is_asked_for(llama):
    """Each that this machine has can be had; one that nobody has is refused."""
    assert load_native(llama).instruction_set == INSTRUCTION_SETS[0]
    assert [load_native(llama, instruction_set=name).instruction_set for name in INSTRUCTION_SETS] == [
        *INSTRUCTION_SETS
    ]
    with pytest.raises(ValueError, match=r"^This processor does not have the instruction set 'mmx', or rbee does not"):
        load_native(llama, instruction_set="mmx")


def test_progress_ends_with_ready(llama):
    """Packing is reported first, in megabytes and in layers."""
    reports = []
    native(llama, quantize="q4", block_size=16, kv_cache_mib=1, on_loading=lambda *report: reports.append(report))
    assert reports == [("packing the weights, in MB", 0, 1, 0, 3), ("ready", 1, 1, 3, 3)]


def test_threads_are_as_many_as_asked_for_or_as_there_are_cores(llama):
    """The sampler shares them."""
    assert load_native(llama, threads=3).pool.threads == 3
    assert load_native(llama, threads=0).pool.threads == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("threads", [1, 3])
def test_engine_process(llama, tmp_path, threads):
    """A process that runs the native model has as many compute threads as asked for, and has not loaded torch."""
    config = EngineConfig(model=str(llama), threads=threads, kv_cache_mib=4, quantize="q4")
    with engine_process(tmp_path, config) as engine:
        loading = engine.wait_for(messages.Loading)
        assert (loading.layers_loaded, loading.layers_total) == (0, 3)
        assert loading.memory_bytes > 2**20
        ready = engine.wait_for(messages.Ready)
        assert (ready.runner, ready.dtype) == ("native", "q4 weights, int8 activations")
        assert (ready.max_model_len, ready.vocab_size) == (256, 211)
        request = engine.submit([1, 2, 3])
        engine.drain_until(lambda: request.finish)
        assert (len(request.tokens), request.finish) == (8, FinishReason.LENGTH)
        names = [
            Path(f"/proc/{engine.process.pid}/task/{thread.id}/comm").read_text().strip()
            for thread in psutil.Process(engine.process.pid).threads()
        ]
        assert names.count("rbee-compute") == threads - 1  # and the engine's own
        maps = Path(f"/proc/{engine.process.pid}/maps").read_text()
        assert "_kernels" in maps
        assert "libtorch" not in maps
