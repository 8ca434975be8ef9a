"""What TorchRunner says about models, options and devices that it cannot serve; its limits, and its dtypes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rbee.errors import ConfigError, ModelError
from rbee.messages import FinishReason
from tests.engine.engine_parts import InProcessEngine
from tests.engine.runners.tiny_models import (
    ALL_HEADS,
    ARCHITECTURES,
    SMALL,
    WINDOW,
    Architecture,
    load,
    make_model,
    rope,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from rbee.engine.input_batch import InputBatch
    from rbee.engine.runners.interface import StepOutput
    from rbee.engine.runners.torch.runner import TorchRunner


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a small Llama."""
    folder = tmp_path_factory.mktemp("llama")
    make_model(folder, ARCHITECTURES["llama"])
    return folder


@pytest.fixture
def broken(llama, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(llama, tmp_path / "broken")


def greedy(runner: TorchRunner, prompts: list[list[int]], num_tokens: int = 24) -> list[list[int]]:
    """Tokens for all prompts submitted together."""
    with InProcessEngine(runner) as engine:
        requests = [engine.submit(prompt, max_tokens=num_tokens) for prompt in prompts]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.LENGTH}
        return [request.tokens for request in requests]


def test_not_a_number_in_one_request_does_not_reach_another(broken):
    """A sequence whose keys and values are NaN fails alone, and so does nobody that gets its blocks later."""
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][13] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    runner = load(broken)
    healthy, sick = [5, 6, 7], [13] * 30
    with InProcessEngine(runner, num_blocks=16) as engine:
        alone = engine.submit(healthy)
        engine.run()
        beside = engine.submit(healthy)
        failed = engine.submit(sick)
        cancelled = engine.submit(sick * 3, max_tokens=20)
        engine.run()
        assert failed.finish == cancelled.finish == FinishReason.ERROR
        after = [engine.submit([*healthy, *range(20, 20 + n)], max_tokens=20) for n in range(0, 12, 3)]
        again = engine.submit(healthy)
        engine.run()
        assert beside.tokens == again.tokens == alone.tokens
        assert {request.finish for request in after} == {FinishReason.LENGTH}


def test_sampled_tokens_are_the_same_alone_and_beside_others(llama):
    """A seeded request yields the same tokens alone, batched, and after a preemption."""
    runner = load(llama)
    prompts = [list(range(1, 20)), list(range(30, 80)), list(range(90, 140))]
    results = []
    cases: list[tuple[int, dict[str, Any]]] = [(1, {}), (3, {}), (3, {"num_blocks": 8})]
    for count, options in cases:
        with InProcessEngine(runner, **options) as engine:
            requests = [
                engine.submit(prompt, max_tokens=25, temperature=0.9, top_k=50, top_p=0.9, seed=n)
                for n, prompt in reversed(list(enumerate(prompts[:count])))
            ]
            engine.run()
            assert (engine.scheduler.num_preemptions > 0) == bool(options)
            results.append(requests[-1].tokens)
    assert results[0] == results[1] == results[2]


def test_a_long_prefill_reports_progress_within_its_step(llama):
    """Each layer of each step reports, so that a step that takes long can be told from a hang."""
    reports: list[None] = []
    runner = load(llama, on_progress=lambda: reports.append(None))
    with InProcessEngine(runner) as engine:
        engine.submit([*range(1, 201)], max_tokens=1)
        assert engine.core.step()
    assert len(reports) == SMALL["num_hidden_layers"] > 1


def logits_of(runner: TorchRunner, prompt: list[int], **sampling: object) -> torch.Tensor:
    """What the runner answers to the one step that a request for one token takes: [rows, vocab]."""
    answers: list[NDArray[np.float32]] = []
    execute = runner.execute

    def note(batch: InputBatch) -> StepOutput:
        output = execute(batch)
        answers.append(output.logits)
        return output

    with pytest.MonkeyPatch.context() as patch, InProcessEngine(runner) as engine:
        patch.setattr(runner, "execute", note)
        engine.submit(prompt, max_tokens=1, **sampling)
        engine.run()
    (answer,) = answers
    assert answer.dtype == "float32"
    assert answer.flags.c_contiguous
    return torch.from_numpy(answer)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
def test_logits_of_a_prompt_that_is_scored(tmp_path, name):
    """The row that samples comes first, then a row for each token of the prompt that another one follows."""
    reference = make_model(tmp_path, ARCHITECTURES[name])
    tokens = torch.randint(1, SMALL["vocab_size"], (40,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = reference(tokens[None]).logits[0]
    logits = logits_of(load(tmp_path), tokens.tolist(), num_prompt_logprobs=0)
    torch.testing.assert_close(logits, torch.cat([expected[-1:], expected[:-1]]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(tmp_path, name, dtype):
    """Weights and cache of 16 bits yield logits as close to those of 32 bits as transformers' own with 16 bits are."""
    reference = make_model(tmp_path, ARCHITECTURES[name])
    runner = load(tmp_path, dtype=dtype)
    assert runner.dtype == dtype
    tokens = torch.randint(1, SMALL["vocab_size"], (40,), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        exact = reference(tokens[None]).logits[0, -1]
        own = reference.to(getattr(torch, dtype))(tokens[None]).logits[0, -1].float()
    (logits,) = logits_of(runner, tokens.tolist())
    assert (logits - exact).norm() <= 2 * (own - exact).norm()
    assert (logits - exact).norm() < 0.2 * exact.norm()
    assert len(greedy(runner, [tokens.tolist(), tokens[:7].tolist()])) == 2


def test_cache_of_half_precision_holds_twice_as_much(llama):
    """A block of 16-bit keys and values takes half the memory."""
    assert load(llama, dtype="bfloat16", kv_cache_mib=1).num_blocks // 2 == load(llama, kv_cache_mib=1).num_blocks


@pytest.mark.parametrize(
    ("device", "reason"),
    [("cuda:99", "cuda"), ("gpu", "Expected one of cpu, cuda"), ("meta", "no data")],
)
def test_device_that_is_not_there_is_a_sentence(llama, device, reason):
    """A device that torch cannot use is refused before anything is loaded."""
    with pytest.raises(ConfigError, match=rf"(?i)^--device {device} cannot be used: .*{reason}.*\.$") as caught:
        load(llama, device=device)
    assert "\n" not in str(caught.value)


def test_max_model_len_and_pool_size(llama, caplog):
    """The cache bounds max_model_len: lowered with a log line when it was not asked for, refused when it was."""
    assert load(llama).max_model_len == SMALL["max_position_embeddings"]
    assert load(llama, max_model_len=100, max_num_seqs=3).num_blocks == 3 * 7
    with pytest.raises(ConfigError, match="257 is more than the 256 tokens"):
        load(llama, max_model_len=257)
    folder = llama.parent / "wide"
    make_model(folder, Architecture(lambda: transformers.LlamaConfig(**{**SMALL, "max_position_embeddings": 10_000})))
    with pytest.raises(ConfigError, match="--max-model-len 9000 does not fit --kv-cache-mib 1"):
        load(folder, max_model_len=9000, kv_cache_mib=1)
    runner = load(folder, kv_cache_mib=1)
    assert runner.max_model_len == runner.num_blocks * 16 < 10_000
    assert "instead of the model's own 10000" in caplog.text


def test_dynamic_rope_is_limited_to_its_original_length(tmp_path):
    """A model whose frequencies would change for all rows with one long row never gets that long a row."""
    config = transformers.LlamaConfig(**SMALL, **rope("dynamic", factor=4.0))
    make_model(tmp_path, Architecture(lambda: config))
    assert load(tmp_path).max_model_len == SMALL["max_position_embeddings"]


def edit_config(folder: Path, **changes: object) -> None:
    """Change config.json in place."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit) -> None:
    """Change model.safetensors in place."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    """Cut the file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (shutil.rmtree, r"holds no model: there is no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights"),
        (lambda folder: truncate(folder / "model.safetensors"), r"model\.safetensors is damaged: .*"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be used"),
        (lambda folder: edit_config(folder, model_type="nonesuch"), r"config\.json cannot be used .*nonesuch"),
        (lambda folder: edit_config(folder, intermediate_size=80), r"do not fit .* \[48, 64\], .* \[48, 80\]"),
        (
            lambda folder: edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight")),
            r"incomplete: model\.layers\.1\.mlp\.up_proj\.weight",
        ),
    ],
    ids=["no folder", "no weights", "truncated", "empty", "bad json", "unknown architecture", "shape", "missing"],
)
def test_damaged_folder_is_a_sentence(broken, damage, reason):
    """Whatever is wrong with the folder, the error names it and the reason."""
    damage(broken)
    with pytest.raises(ModelError, match=reason) as caught:
        load(broken)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)


UNSUPPORTED: dict[str, tuple[Callable[[], transformers.PretrainedConfig], str]] = {
    "encoder-decoder": (
        lambda: transformers.T5Config(vocab_size=211, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4),
        "t5 is an encoder-decoder, and rbee serves decoder-only models",
    ),
    "no language model": (
        lambda: transformers.ViTConfig(hidden_size=48, num_hidden_layers=2),
        "does not generate text with vit",
    ),
    "encoder": (
        lambda: transformers.BertConfig(**ALL_HEADS, is_decoder=False),
        "a token sees those behind it",
    ),
    "alibi": (
        lambda: transformers.BloomConfig(vocab_size=211, hidden_size=48, n_layer=2, n_head=4),
        "BloomForCausalLM does not go through transformers' attention interface",
    ),
    "alibi of another make": (
        lambda: transformers.MptConfig(vocab_size=211, d_model=48, n_layers=2, n_heads=4),
        "MptForCausalLM does not go through transformers' attention interface",
    ),
    "attention classes": (
        lambda: transformers.FalconConfig(vocab_size=211, hidden_size=48, num_hidden_layers=2, num_attention_heads=4),
        "falcon does not go through transformers' attention interface",
    ),
    "state space": (
        lambda: transformers.MambaConfig(vocab_size=211, hidden_size=48, num_hidden_layers=2),
        "does not go through transformers' attention interface",
    ),
    "recurrence": (
        lambda: transformers.RwkvConfig(vocab_size=211, hidden_size=48, num_hidden_layers=2, attention_hidden_size=48),
        "does not go through transformers' attention interface",
    ),
    "convolution in some layers": (
        lambda: transformers.Lfm2Config(**SMALL, layer_types=["full_attention", "conv", "full_attention"]),
        "layer 1 .* does not go through transformers' attention interface",
    ),
    "state space beside attention": (
        lambda: transformers.FalconH1Config(**SMALL, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_state=8),
        "computes for a token depends on the other tokens of the same step",
    ),
    "chunked attention": (
        lambda: transformers.Llama4TextConfig(
            **SMALL, head_dim=12, attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=64
        ),
        "its masks are no sliding windows",
    ),
    "window of the cache alone": (
        lambda: transformers.MoshiConfig(**ALL_HEADS, sliding_window=WINDOW, head_dim=12, ffn_dim=64),
        "layer 0 has a sliding window that no mask shows",
    ),
    "layers that share attention": (
        lambda: transformers.DiffLlamaConfig(**SMALL),
        "runs layer 0 more than once",
    ),
    "selected keys": (
        lambda: transformers.DogeConfig(**SMALL, keep_window_size=8),
        r"\(DogeAttention\) has a mask of its own",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_architecture_is_refused_at_load(tmp_path, name):
    """A model that needs what the paged cache cannot do is refused with the feature's name, never run wrongly."""
    config, reason = UNSUPPORTED[name]
    model = transformers.AutoModel if name in ("encoder-decoder", "no language model") else None
    make_model(tmp_path, Architecture(config), kind=model or transformers.AutoModelForCausalLM)
    with pytest.raises(ModelError, match=reason) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_in_memory_are_refused_before_they_are_read(tmp_path):
    """By the header of a sparse file whose weights would be larger than any memory here."""
    header = {"a": {"dtype": "F16", "shape": [1 << 41], "data_offsets": [0, 1 << 42]}}
    content = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + (1 << 42))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=rf"weights of the model in {tmp_path} need 8388608 MiB, and \d+ MiB"):
        load(tmp_path)
