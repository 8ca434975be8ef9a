"""Rotary factors for short and for long sequences: the longest that may come decides for all, in every runner."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

from rbee.config import EngineConfig
from rbee.engine.runners.choice import load
from rbee.models.gguf import open_gguf
from rbee.models.gguf.config import config_of
from tests.engine.runners.gguf_writing_parts import describe, write
from tests.engine.runners.native.native_parts import Chunk, execute
from tests.engine.runners.tiny_models import SIXTEEN, Architecture, make_model, rope

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

LIMIT, ORIGINAL = 256, 64
TOKENS = np.random.default_rng(5).integers(1, 200, LIMIT).tolist()
ROUNDING = 1e-4  # of the logits' size: what adding floats in another order makes
FACTORS: dict[str, Any] = {"short_factor": [1 + 0.1 * i for i in range(6)], "long_factor": [4.0 + i for i in range(6)]}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.PreTrainedModel]:
    """A model whose heads are turned in part, and its folder."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.Phi3Config(
        **{**SIXTEEN, "max_position_embeddings": LIMIT},
        original_max_position_embeddings=ORIGINAL,
        **rope("longrope", **FACTORS, partial_rotary_factor=0.75, original_max_position_embeddings=ORIGINAL),
    )
    return folder, make_model(folder, Architecture(lambda: config, scale=0.3))


@pytest.fixture(params=["native", "torch", "native, GGUF", "torch, GGUF"])
def logits(
    request: pytest.FixtureRequest, tmp_path: Path, reference: tuple[Path, transformers.PreTrainedModel]
) -> Callable[..., NDArray[np.float32]]:
    """`logits(max_model_len, ends)`: those of `TOKENS`, computed in chunks with these ends."""
    folder, model = reference
    runner, _, is_gguf = request.param.partition(", ")
    if is_gguf:
        folder = tmp_path
        file = write(folder / "m.gguf", describe("phi3", model))
        (folder / "config.json").write_text(json.dumps(config_of(open_gguf(file))))
        (folder / "rbee.json").write_text('{"gguf": "m.gguf"}')

    def run(max_model_len: int, ends: Sequence[int]) -> NDArray[np.float32]:
        options: dict[str, Any] = {"runner": runner, "exact": runner == "native", "kv_cache_mib": 8, "threads": 2}
        made: Any = load(EngineConfig(model=str(folder), max_model_len=max_model_len, **options), lambda *_: None)
        assert made.max_model_len == (max_model_len or LIMIT)
        blocks = range(LIMIT // 16)
        return np.concatenate(
            [execute(made, Chunk(TOKENS, blocks, *chunk))[0] for chunk in itertools.pairwise((0, *ends))]
        )

    return run


def expected(model: transformers.PreTrainedModel, length: int) -> NDArray[np.float32]:
    """What transformers computes of a text of this length."""
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([TOKENS[:length]])).logits[0]
    return logits.numpy()


@pytest.mark.parametrize("max_model_len", [0, ORIGINAL + 1, LIMIT])
def test_a_long_context_has_its_factors_from_the_first_token(reference, logits, max_model_len):
    """Each chunk, however short, is turned as transformers turns a text that is long from the beginning."""
    length = max_model_len or LIMIT
    wanted = expected(reference[1], length)
    found = logits(max_model_len, sorted({5, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, length}))
    assert np.abs(found - wanted).max() < ROUNDING * np.sqrt(np.mean(wanted**2))


def test_a_short_context_has_the_factors_that_the_model_was_trained_with(reference, logits):
    """Who needs no more than the original length says so, and gets the logits of transformers up to there."""
    wanted = expected(reference[1], ORIGINAL)
    assert np.abs(logits(ORIGINAL, [5, ORIGINAL]) - wanted).max() < ROUNDING * np.sqrt(np.mean(wanted**2))
    beyond = expected(reference[1], ORIGINAL + 1)[:ORIGINAL]
    assert np.abs(beyond - wanted).max() > 100 * ROUNDING, "the two lists must make a difference"
