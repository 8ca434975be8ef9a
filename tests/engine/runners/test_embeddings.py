"""Vectors of both runners against transformers' hidden states, pooled, for small random models of many families."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rbee.config import EngineConfig
from rbee.engine.runners import choice
from rbee.errors import ModelError
from rbee.messages import FinishReason
from rbee.server.text import served_model
from tests.embeddings_parts import CLS, LAST, MEAN, pooled
from tests.engine.engine_parts import InProcessEngine
from tests.engine.runners.tiny_models import (
    ARCHITECTURES,
    NATIVE_ARCHITECTURES,
    SMALL,
    Architecture,
    load,
    load_native,
    make_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from rbee.engine.runners.interface import ModelRunner
    from rbee.pooling_params import PoolingParams

PROMPT_LENGTHS = (1, 5, 17, 40, 64)
ROUNDING = 2e-4  # of a vector of length 1: another order of additions shifts it by some 1e-6, a steep softmax by more

# Norms of two kinds, norms behind both halves, windows, biases, experts, factors; a decoder that is no Llama, and one
# whose hidden states are narrower than its layers.
TORCH_FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "gpt2", "mixtral", "granite", "opt"]
NATIVE_FAMILIES = ["llama", "llama, tied and biased", "mistral", "qwen2", "qwen3", "gemma3", "granite", "ministral3"]
_RUNNERS: dict[str, tuple[list[str], dict[str, Architecture], Callable[..., ModelRunner]]] = {
    "torch": (TORCH_FAMILIES, ARCHITECTURES, load),
    "native": (NATIVE_FAMILIES, NATIVE_ARCHITECTURES, load_native),
}


class Case(NamedTuple):
    """A runner, prompts, and the hidden states [length, hidden_size] of each as transformers has them."""

    runner: ModelRunner
    prompts: list[list[int]]
    hidden_states: list[NDArray[np.float64]]


def hidden_states(model: transformers.PreTrainedModel, prompt: list[int]) -> NDArray[np.float64]:
    """What the model's head reads for each token of a prompt alone."""
    with torch.inference_mode():
        state: torch.Tensor = model.get_decoder()(torch.tensor([prompt])).last_hidden_state[0]
    return state.double().numpy()


@pytest.fixture(
    scope="module",
    params=[(kind, name) for kind, (families, _, _) in _RUNNERS.items() for name in families],
    ids=": ".join,
)
def case(request, tmp_path_factory):
    """One family. The last prompt begins as the one before it."""
    kind, name = request.param
    _, architectures, load_runner = _RUNNERS[kind]
    folder = tmp_path_factory.mktemp("model")
    model = make_model(folder, architectures[name])
    random = torch.Generator().manual_seed(1)
    prompts = [torch.randint(1, SMALL["vocab_size"], (n,), generator=random).tolist() for n in PROMPT_LENGTHS]
    prompts.append(prompts[-1][:48] + prompts[1])
    return Case(load_runner(folder), prompts, [hidden_states(model, prompt) for prompt in prompts])


def vectors(case: Case, prompts: list[list[int]], params: PoolingParams, **options: Any) -> list[NDArray[np.float64]]:
    """Of prompts that are submitted together."""
    with InProcessEngine(case.runner, **options) as engine:
        requests = [engine.submit(prompt, pooling=params) for prompt in prompts]
        engine.run()
        assert {request.finish for request in requests} == {FinishReason.STOP}
        engine.assert_at_baseline()
        return [np.array(request.logprobs) for request in requests]


def check(case: Case, found: list[NDArray[np.float64]], params: PoolingParams) -> None:
    """All of them are transformers'."""
    for vector, states in zip(found, case.hidden_states, strict=True):
        assert len(vector) == case.runner.hidden_size == states.shape[1]
        assert np.linalg.norm(vector - pooled(states, params)) < ROUNDING


@pytest.mark.parametrize("params", [MEAN, LAST, CLS], ids=lambda params: params.method)
def test_vectors_are_those_of_transformers(case, params):
    """Together in one step; alone; in chunks of 7 tokens, and as prefixes of each other."""
    together = vectors(case, case.prompts, params)
    check(case, together, params)
    check(case, [vectors(case, [prompt], params)[0] for prompt in case.prompts], params)
    check(case, vectors(case, case.prompts, params, max_num_batched_tokens=7), params)
    if case.runner.name == "native":
        chunked = vectors(case, case.prompts, params, max_num_batched_tokens=7, prefix_caching=False)
        for one, other in zip(together, chunked, strict=True):
            assert np.abs(one - other).max() < 1e-7, "the kernels' rows do not depend on their step"


def test_vectors_beside_streams(case):
    """Streams that run in the same steps get the tokens that they get alone, and vectors do not change either."""
    prompt = case.prompts[3]
    with InProcessEngine(case.runner) as engine:
        alone = engine.submit(prompt, max_tokens=12)
        engine.run()
    with InProcessEngine(case.runner, max_num_batched_tokens=7) as engine:
        stream = engine.submit(prompt, max_tokens=12)
        while not stream.tokens:
            engine.core.step()
            engine.rings.drain()
        requests = [engine.submit(each, pooling=MEAN) for each in case.prompts]
        engine.run()
        assert stream.tokens == alone.tokens
        check(case, [np.array(request.logprobs) for request in requests], MEAN)


@pytest.mark.parametrize("load_runner", [load, load_native])
@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_that_was_saved_by_itself(tmp_path, load_runner, tied):
    """It gives its vectors; it generates text as well if its embedding is its head."""
    config = transformers.Qwen3Config(**{**SMALL, "hidden_size": 64, "tie_word_embeddings": tied}, head_dim=16)
    model = make_model(tmp_path, Architecture(lambda: config), kind=transformers.AutoModel)
    prompt = list(range(1, 30))
    with torch.inference_mode():
        states = model(torch.tensor([prompt])).last_hidden_state[0].double().numpy()
    case = Case(load_runner(tmp_path), [prompt], [states])
    check(case, vectors(case, [prompt], LAST), LAST)
    assert case.runner.has_head == tied


def test_weights_that_are_incomplete_are_no_decoder_alone(tmp_path):
    """What lacks more than a head, or the head of a model that was saved with one, cannot be loaded."""
    config = transformers.Qwen3Config(**{**SMALL, "hidden_size": 64}, head_dim=16)
    for kind, name in (
        (transformers.AutoModelForCausalLM, "lm_head.weight"),
        (transformers.AutoModel, "layers.1.mlp.up_proj.weight"),
    ):
        folder = tmp_path / name
        make_model(folder, Architecture(lambda: config), kind=kind)
        file = folder / "model.safetensors"
        save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file, {"format": "pt"})
        for load_runner in (load, load_native):
            with pytest.raises(ModelError, match=re.escape(name)):
                load_runner(folder)


def test_default_model(default_model):
    """Its GGUF's vectors with exact arithmetic are torch's; with the usual one, of 8 bits, they point the same way."""
    texts = ["Hello", "The sea was calm, and the crew counted stars.", "def f(x):\n    return x * 12345", "海" * 40]
    codec = served_model.load(default_model.name, default_model.path).codec
    prompts = [codec.encode(text, add_special_tokens=True) for text in texts]

    def of(**options: Any) -> NDArray[np.float64]:
        config = EngineConfig(model=str(default_model.path), kv_cache_mib=64, max_model_len=512, **options)
        runner = choice.load(config, lambda *_: None)
        return np.array(vectors(Case(runner, [], []), prompts, MEAN))

    expected = of(runner="torch")
    assert np.linalg.norm(of(exact=True) - expected, axis=1).max() < 1e-3
    assert np.sum(of() * expected, axis=1).min() > 0.995
