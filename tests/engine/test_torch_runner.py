"""TorchRunner against transformers.generate on small random models, and what it says about models it cannot run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from engine_parts import InProcessEngine
from safetensors.torch import load_file, save_file

from rbee.engine.torch_runner import TorchRunner
from rbee.errors import ConfigError, ModelError
from rbee.messages import FinishReason

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # a tied random model repeats its last token, whatever its attention sees
}
WINDOW = 12
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=WINDOW),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, head_dim=12, sliding_window=WINDOW, attn_logit_softcapping=2.0, query_pre_attn_scalar=3
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL,
        head_dim=12,
        sliding_window=WINDOW,
        query_pre_attn_scalar=3,
        layer_types=["sliding_attention"] * 2 + ["full_attention"],
    ),
}
NUM_TOKENS = 24
PROMPT_LENGTHS = (1, 5, 17, 40, 64, 33)


def make_model(folder: Path, config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """A model with random weights that are large enough for its tokens to vary, saved in `folder`."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def load(folder: Path, **options: object) -> TorchRunner:
    """A runner for the folder, with one thread: these models are too small for more."""
    defaults = {"dtype": "auto", "threads": 1, "max_model_len": 0, "max_num_seqs": 64, "kv_cache_mib": 4}
    return TorchRunner(folder, device="cpu", block_size=16, progress=lambda *_: None, **{**defaults, **options})


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    """(runner, prompts, what transformers generates for each prompt alone) of one architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = make_model(folder, CONFIGS[request.param]())
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, SMALL["vocab_size"], (n,), generator=random).tolist() for n in PROMPT_LENGTHS]
    expected = [
        reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    assert len({token for tokens in expected for token in tokens}) > 30, (
        "a model that always says the same shows nothing"
    )
    return load(folder), prompts, expected


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a small Llama."""
    folder = tmp_path_factory.mktemp("llama")
    make_model(folder, CONFIGS["llama"]())
    return folder


@pytest.fixture
def broken(llama, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(llama, tmp_path / "broken")


def generate(runner: TorchRunner, prompts: list[list[int]], **options: int) -> list[list[int]]:
    """Greedy tokens for all prompts submitted together; every request must come to its proper end."""
    with InProcessEngine(runner, **options) as engine:
        requests = [engine.submit(prompt, max_tokens=NUM_TOKENS) for prompt in prompts]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.LENGTH}
        assert (engine.scheduler.num_preemptions > 0) == ("num_blocks" in options)
        engine.assert_at_baseline()
        return [request.tokens for request in requests]


def test_alone(model):
    """One request at a time yields transformers' tokens."""
    runner, prompts, expected = model
    assert [generate(runner, [prompt])[0] for prompt in prompts] == expected


def test_batched(model):
    """All requests together yield the same tokens."""
    runner, prompts, expected = model
    assert generate(runner, prompts) == expected


def test_chunked_prefill(model):
    """A budget of 7 tokens a step, so that prompts come in chunks beside decoding rows, changes nothing."""
    runner, prompts, expected = model
    assert generate(runner, prompts, max_num_batched_tokens=7) == expected


def test_preemption(model):
    """A pool that is too small for all, so that sequences are preempted and computed again, changes nothing."""
    runner, prompts, expected = model
    assert generate(runner, prompts, num_blocks=16) == expected


def test_contexts_of_very_different_lengths(model):
    """Decoding rows that are too different to be padded together yield the same tokens."""
    runner, prompts, _ = model
    long = (prompts[4] * 4)[:225]
    assert generate(runner, [prompts[0], long, prompts[1]]) == [
        generate(runner, [prompt])[0] for prompt in (prompts[0], long, prompts[1])
    ]


def test_not_a_number_in_one_request_does_not_reach_another(llama):
    """A sequence whose keys and values are NaN fails alone, and so does nobody that gets its blocks later."""
    runner = load(llama)
    weights = runner._model.get_input_embeddings().weight
    with torch.no_grad():
        weights[13] = torch.nan
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
    for count, options in ((1, {}), (3, {}), (3, {"num_blocks": 8})):
        with InProcessEngine(runner, **options) as engine:
            requests = [
                engine.submit(prompt, max_tokens=25, temperature=0.9, top_k=50, top_p=0.9, seed=n)
                for n, prompt in reversed(list(enumerate(prompts[:count])))
            ]
            engine.run()
            assert (engine.scheduler.num_preemptions > 0) == bool(options)
            results.append(requests[-1].tokens)
    assert results[0] == results[1] == results[2]


def test_bfloat16(llama):
    """Another dtype is used for weights and cache, and logits still come as float32."""
    runner = load(llama, dtype="bfloat16")
    assert runner.dtype == "bfloat16"
    assert runner.num_blocks == load(llama).num_blocks * 2 or runner.num_blocks == 64 * 16
    assert all(len(tokens) == NUM_TOKENS for tokens in generate(runner, [[1, 2, 3], [4]]))


def test_max_model_len_and_pool_size(llama, caplog):
    """The cache bounds max_model_len: lowered with a log line when it was not asked for, refused when it was."""
    assert load(llama).max_model_len == SMALL["max_position_embeddings"]
    assert load(llama, max_model_len=100, max_num_seqs=3).num_blocks == 3 * 7
    with pytest.raises(ConfigError, match="257 is more than the 256 tokens"):
        load(llama, max_model_len=257)
    wide = transformers.LlamaConfig(**{**SMALL, "max_position_embeddings": 10_000})
    folder = llama.parent / "wide"
    make_model(folder, wide)
    with pytest.raises(ConfigError, match="--max-model-len 9000 does not fit --kv-cache-mib 1"):
        load(folder, max_model_len=9000, kv_cache_mib=1)
    runner = load(folder, kv_cache_mib=1)
    assert runner.max_model_len == runner.num_blocks * 16 < 10_000
    assert "instead of the model's own 10000" in caplog.text


def test_longrope_is_limited_to_its_original_length(tmp_path):
    """A model whose rotary frequencies would change for all rows with one long row never gets that long a row."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6, "rope_theta": 10000.0}
    rope["original_max_position_embeddings"] = 64
    make_model(tmp_path, transformers.Phi3Config(**SMALL, rope_parameters=rope, original_max_position_embeddings=64))
    assert load(tmp_path).max_model_len == 64


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


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: transformers.BloomConfig(vocab_size=211, hidden_size=48, n_layer=2, n_head=4), "does not go through"),
        (lambda: transformers.MambaConfig(vocab_size=211, hidden_size=48, num_hidden_layers=2), "does not go through"),
        (lambda: transformers.GptOssConfig(**SMALL, head_dim=12, num_local_experts=2), "has 's_aux'"),
        (
            lambda: transformers.Qwen2MoeConfig(
                **SMALL,
                use_sliding_window=True,
                sliding_window=8,
                max_window_layers=28,
                num_experts=2,
                num_experts_per_tok=1,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
            ),
            "sliding_attention in layer 0",
        ),
        (lambda: transformers.PhimoeConfig(**SMALL, sliding_window=8, num_local_experts=2), "sliding window"),
    ],
    ids=["alibi", "state space", "attention sinks", "layer window by mask alone", "window by mask alone"],
)
def test_unsupported_architecture_is_refused_at_load(tmp_path, config, reason):
    """A model that needs what the paged cache cannot do is refused with the feature's name, never run wrongly."""
    make_model(tmp_path, config())
    with pytest.raises(ModelError, match=reason):
        load(tmp_path)
