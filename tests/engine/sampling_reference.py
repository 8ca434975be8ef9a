"""Rows for the sampler's tests, and the distribution that transformers' own classes make of the same parameters."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from rbee.engine.sampler import Row, RowSampler, sample
from rbee.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def row(*, prompt: Sequence[int] = (), output: Sequence[int] = (), **params: Any) -> Row:
    """A row whose sequence has these tokens so far."""
    sampler = RowSampler(SamplingParams(max_tokens=1, **params))
    return Row(sampler, array.array("I", [*prompt, *output]), len(prompt))


def count_draws(logits: NDArray[np.float32], draws: int, **row_params: Any) -> NDArray[np.int64]:
    """How often each token comes in draws from the same logits with the seeds from 0 on."""
    seeds = [row(seed=seed, **row_params) for seed in range(draws)]
    sampled = sample(np.tile(logits, (draws, 1)), seeds)
    assert sampled.valid.all()
    return np.bincount(sampled.token_ids, minlength=len(logits))


class OutputPenalties(LogitsProcessor):
    """Frequency and presence penalty as in OpenAI's formula; transformers has neither."""

    def __init__(self, num_prompt_tokens: int, frequency: float, presence: float) -> None:
        """Take the two penalties, and where the output begins."""
        self._num_prompt_tokens, self._frequency, self._presence = num_prompt_tokens, frequency, presence

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Subtract c * frequency + (c > 0) * presence from the logit of a token that occurs c times."""
        counts = torch.bincount(input_ids[0, self._num_prompt_tokens :], minlength=scores.shape[1])[None]
        return scores - counts * self._frequency - (counts > 0) * self._presence


def transformers_distribution(
    logits: NDArray[np.float32], *, prompt: Sequence[int] = (), output: Sequence[int] = (), **params: Any
) -> NDArray[np.float64]:
    """The probabilities after transformers' processors and warpers in SamplingParams' order, in float64.

    A temperature of 0 is not among what they know.
    """
    wanted = SamplingParams(max_tokens=1, **params)
    steps = LogitsProcessorList()
    if wanted.allowed_token_ids is not None:
        allowed = list(wanted.allowed_token_ids)
        steps.append(PrefixConstrainedLogitsProcessor(lambda *_: allowed, num_beams=1))
    if wanted.logit_bias:
        steps.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in wanted.logit_bias.items()]))
    if wanted.stop_token_ids:
        steps.append(
            MinNewTokensLengthLogitsProcessor(len(prompt), wanted.min_tokens, list(wanted.stop_token_ids), device="cpu")
        )
    steps.append(RepetitionPenaltyLogitsProcessor(wanted.repetition_penalty))
    steps.append(OutputPenalties(len(prompt), wanted.frequency_penalty, wanted.presence_penalty))
    steps.append(TemperatureLogitsWarper(wanted.temperature))
    if wanted.top_k:
        steps.append(TopKLogitsWarper(wanted.top_k))
    steps.append(TopPLogitsWarper(wanted.top_p))
    steps.append(MinPLogitsWarper(wanted.min_p))
    if wanted.typical_p < 1:
        steps.append(TypicalLogitsWarper(wanted.typical_p))
    input_ids: Any = torch.tensor([[*prompt, *output]], dtype=torch.long)  # transformers asks for a LongTensor
    scores: Any = torch.from_numpy(logits.astype(np.float64))[None]
    probabilities: NDArray[np.float64] = steps(input_ids, scores).softmax(-1)[0].numpy()
    return probabilities
