"""What sampling costs per row, beside the same in numpy and in torch.

    python benchmarks/bench_sampler.py --save

Microseconds per row of a step with `--rows` rows, all with the same parameters and a context of 1,000 tokens, for
vocabularies of 49,152 and 151,936 tokens: the median of `--steps` steps, one thread, the contenders in turns. Before
each step the logits are written anew, as a forward pass would.

numpy and torch get what our sampler gets, logits in memory and parameters as arrays, and return token ids. Both work on
all rows at once. numpy sorts no more than necessary; torch's filters are transformers'. Ours is measured without vector
instructions too.

The logits are shaped like a small model's at a temperature of 1: on 34 positions of one text, SmolLM2-135M needs 114
tokens for 0.95 in the median, these need about 90. "flat" is normal with a deviation of 3 and needs thousands.
"""

from __future__ import annotations

import array
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from program import argument_parser, finish
from saving import table
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rbee.engine.sampler import Row, RowSampler, sample
from rbee.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_VOCABULARIES = (49_152, 151_936)
_CONTEXT = 1_000
_CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top-k 50": {"top_k": 50},
    "top-p 0.95": {"top_p": 0.95},
    "top-p 0.95, flat": {"top_p": 0.95},
    "min-p 0.05": {"min_p": 0.05},
    "typical 0.95": {"typical_p": 0.95},
    "greedy, penalties": {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.2},
    "greedy, 5 logprobs": {"temperature": 0.0, "num_logprobs": 5},
}
_TARGETS = {"greedy": 10, "temperature 0.8": 30, "top-k 50": 60, "top-p 0.95": 60, "min-p 0.05": 60}  # at 49,152


@dataclass(frozen=True)
class Step:
    """What a contender gets: logits [n, vocab], tokens [n, context], of which the second half is output."""

    logits: NDArray[np.float32]
    token_ids: NDArray[np.int64]
    params: SamplingParams


def make_logits(rows: int, vocab_size: int, *, flat: bool) -> NDArray[np.float32]:
    """Like a model's: a power law of the rank with some noise, in random order; or flat."""
    random = np.random.default_rng(1)
    if flat:
        return random.normal(0, 3, (rows, vocab_size)).astype(np.float32)
    law = -1.6 * np.log(np.arange(1, vocab_size + 1))
    noise = random.normal(0, 0.5, (rows, vocab_size))
    return (random.permuted(np.tile(law, (rows, 1)), axis=1) + noise).astype(np.float32)


def with_rbee(step: Step, *, portable: bool) -> Callable[[], object]:
    """Our sampler."""
    rows = [
        Row(RowSampler(step.params), array.array("I", token_ids.tolist()), _CONTEXT // 2)
        for token_ids in step.token_ids
    ]
    return lambda: sample(step.logits, rows, portable=portable)


def with_numpy(step: Step) -> Callable[[], object]:
    """All rows at once; thresholds by partition, and a sort only of what lies above one."""
    params, random = step.params, np.random.default_rng(2)
    n, vocab_size = step.logits.shape
    each = np.arange(n)

    def penalize(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = logits.copy()
        seen = np.take_along_axis(logits, step.token_ids, 1)
        scaled = np.where(seen < 0, seen * params.repetition_penalty, seen / params.repetition_penalty)
        np.put_along_axis(logits, step.token_ids, scaled.astype(np.float32), 1)
        for row, output in zip(logits, step.token_ids[:, _CONTEXT // 2 :], strict=True):
            ids, counts = np.unique(output, return_counts=True)
            row[ids] -= np.float32(params.frequency_penalty) * counts
        return logits

    def largest(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        part = np.partition(values, vocab_size - count, axis=1)[:, vocab_size - count :]
        return -np.sort(-part, axis=1)

    def keep_top_p(weights: NDArray[np.float32]) -> NDArray[np.float32]:
        wanted = params.top_p * weights.sum(1, dtype=np.float64)[:, None]
        count = 128
        while True:
            best = largest(weights, count)
            reached = best.cumsum(1, dtype=np.float64) >= wanted
            if reached[:, -1].all() or count == vocab_size:
                return np.where(weights >= best[each, reached.argmax(1)][:, None], weights, 0)
            count = min(8 * count, vocab_size)

    def keep_typical(weights: NDArray[np.float32]) -> NDArray[np.float32]:
        p = weights / weights.sum(1, dtype=np.float64)[:, None]
        information = -np.log(np.maximum(p, 1e-38))
        distance = np.abs(information - (p * information).sum(1)[:, None])
        order = distance.argsort(1)
        reached = np.take_along_axis(p, order, 1).cumsum(1) >= params.typical_p
        last = order[each, reached.argmax(1)]
        return np.where(distance <= distance[each, last][:, None], weights, 0)

    def run() -> object:
        logits = penalize(step.logits) if params.repetition_penalty != 1 else step.logits
        if params.num_logprobs is not None:
            shifted = step.logits - step.logits.max(1)[:, None]
            top = np.argpartition(shifted, -params.num_logprobs, axis=1)[:, -params.num_logprobs :]
            top_logprobs = np.take_along_axis(shifted, top, 1) - np.log(np.exp(shifted).sum(1))[:, None]
            return logits.argmax(1), top, top_logprobs
        if params.temperature == 0:
            return logits.argmax(1)
        weights = np.exp((logits - logits.max(1)[:, None]) / np.float32(params.temperature))
        if params.top_k:
            weights = np.where(weights >= largest(weights, params.top_k)[:, -1:], weights, 0)
        if params.top_p < 1:
            weights = keep_top_p(weights)
        if params.min_p:
            weights = np.where(weights >= params.min_p, weights, 0)
        if params.typical_p < 1:
            weights = keep_typical(weights)
        cumulative = weights.cumsum(1, dtype=np.float64)
        target = random.random((n, 1)) * cumulative[:, -1:]
        return (cumulative <= target).sum(1)

    return run


def with_torch(step: Step) -> Callable[[], object]:
    """Transformers' warpers, and the draw by an exponential race, which is torch's fastest."""
    params = step.params
    logits = cast("torch.FloatTensor", torch.from_numpy(step.logits))
    token_ids = cast("torch.LongTensor", torch.from_numpy(step.token_ids))
    output = token_ids[:, _CONTEXT // 2 :]
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        steps.append(TypicalLogitsWarper(params.typical_p))

    @torch.inference_mode()
    def run() -> object:
        scores: torch.Tensor = steps(token_ids, logits)
        if params.frequency_penalty:
            counts = torch.zeros_like(scores).scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
            scores = scores - params.frequency_penalty * counts
        if params.num_logprobs is not None:
            return scores.argmax(-1), logits.log_softmax(-1).topk(params.num_logprobs)
        if params.temperature == 0:
            return scores.argmax(-1)
        probabilities = torch.softmax(scores / params.temperature, -1)
        return probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(-1)

    return run


def measure(step: Step, steps: int) -> dict[str, float]:
    """Median microseconds per row of each contender, which take turns."""
    contenders = {
        "rbee": with_rbee(step, portable=False),
        "rbee, portable": with_rbee(step, portable=True),
        "numpy": with_numpy(step),
        "torch": with_torch(step),
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    written = step.logits.copy()
    for number in range(steps + 1):
        for name, run in contenders.items():
            step.logits[:] = written
            start = time.perf_counter_ns()
            run()
            if number > 0:
                taken[name].append((time.perf_counter_ns() - start) / 1000 / len(step.logits))
    return {name: round(statistics.median(times), 2) for name, times in taken.items()}


def main() -> None:
    """Measure all cases."""
    parser = argument_parser(__doc__, "sampler.{json,md}")
    parser.add_argument("--rows", type=int, default=32, help="of a step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=7, help="of each contender and case (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    lines = []
    for vocab_size in _VOCABULARIES:
        logits = {flat: make_logits(options.rows, vocab_size, flat=flat) for flat in (False, True)}
        token_ids = np.random.default_rng(3).zipf(1.3, (options.rows, _CONTEXT)) % vocab_size
        figures[str(vocab_size)] = {}
        for name, params in _CASES.items():
            step = Step(logits["flat" in name], token_ids, SamplingParams(max_tokens=1, **params))
            figure = figures[str(vocab_size)][name] = measure(step, options.steps)
            target = _TARGETS.get(name, "") if vocab_size == _VOCABULARIES[0] else ""
            lines.append([f"{vocab_size:,}", name, *(f"{value:.1f}" for value in figure.values()), str(target)])
    head = ["tokens", "case", "rbee", "rbee, portable", "numpy", "torch", "target"]
    report = f"Microseconds per row, medians, steps of {options.rows} rows.\n\n{table(head, lines)}"
    result = {"benchmark": "sampler", "rows": options.rows, "us_per_row": figures}
    finish(options, "sampler", "The sampler", report, result)


if __name__ == "__main__":
    main()
