"""What the sampler promises beside its distribution: greedy, logprobs, rows that do not touch each other, checks."""

from __future__ import annotations

import array
import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from rbee.engine.sampler import Row, RowSampler, distribution, invalid, sample, score, uniform
from rbee.sampling_params import SamplingParams
from tests.engine.sampling_reference import row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def test_greedy_takes_the_lowest_id_of_equal_maxima():
    """Temperature 0 is argmax, and ties go to the lowest id, also across blocks."""
    logits = np.zeros((3, 2000), np.float32)
    logits[0, [700, 701, 1999]] = 3
    logits[2, 1999] = 1
    result = sample(logits, [row(temperature=0.0, top_k=3, top_p=0.2, min_p=0.9, typical_p=0.1)] * 3)
    assert result.token_ids.tolist() == [700, 0, 1999]
    assert distribution(logits[0], row(temperature=0.0)).nonzero()[0].tolist() == [700]


def test_greedy_takes_the_best_of_the_edited_logits():
    """Mask, bias, min_tokens and penalties come before the argmax."""
    logits = np.array([[0, 1, 2, 3, 4]], np.float32)

    def greedy(**params: Any) -> int:
        return int(sample(logits, [row(temperature=0.0, **params)]).token_ids[0])

    assert greedy() == 4
    assert greedy(allowed_token_ids=(0, 1)) == 1
    assert greedy(logit_bias={0: 5.0}) == 0
    assert greedy(logit_bias={0: 5.0}, allowed_token_ids=(1, 2)) == 2
    assert greedy(logit_bias={0: 5.0}, stop_token_ids=(0,), min_tokens=1) == 4
    assert greedy(stop_token_ids=(4,), min_tokens=1) == 3
    assert greedy(output=[4], stop_token_ids=(4,), min_tokens=1) == 4
    assert greedy(prompt=[4], stop_token_ids=(4,), min_tokens=1) == 3
    assert greedy(prompt=[4], repetition_penalty=2.0) == 3
    assert greedy(prompt=[4], output=[3], presence_penalty=3.0) == 4
    assert greedy(output=[4], presence_penalty=1.5) == 3
    assert greedy(output=[4, 4, 3], frequency_penalty=0.6) == 4
    assert greedy(output=[4, 4, 4, 3], frequency_penalty=0.6) == 3


def test_logprobs_are_those_of_the_unmodified_logits():
    """Whatever edits and filters do, logprobs are log_softmax of what came in, for the rows that ask, and else NaN."""
    logits = np.random.default_rng(3).normal(0, 4, (4, 5003)).astype(np.float32)
    edits: dict[str, Any] = {
        "temperature": 2.0,
        "top_k": 300,
        "logit_bias": {5: 50.0},
        "frequency_penalty": 1.0,
        "output": [1, 1],
    }
    before = logits.copy()
    result = sample(logits, [row(num_logprobs=count, **edits) for count in (3, None, 0, 5003)])
    assert (logits == before).all()
    exact = torch.from_numpy(logits).double().log_softmax(-1)
    chosen = exact[torch.arange(4), torch.from_numpy(result.token_ids.astype(np.int64))].numpy()
    asked = [0, 2, 3]
    np.testing.assert_allclose(result.logprobs[asked], chosen[asked], rtol=0, atol=2e-6)
    assert np.isnan(result.logprobs[1])
    assert result.top_ids.shape == result.top_logprobs.shape == (4, 5003)
    for number, count in ((0, 3), (1, 0), (2, 0), (3, 5003)):
        best = exact[number].topk(count)
        assert result.top_ids[number, :count].tolist() == best.indices.tolist()
        np.testing.assert_allclose(result.top_logprobs[number, :count], best.values, rtol=0, atol=2e-6)
        assert np.isnan(result.top_logprobs[number, count:]).all()
    assert sample(logits[:2], [row(), row(num_logprobs=0)]).top_ids.shape == (2, 0)


@pytest.mark.parametrize("portable", [False, True])
def test_score_is_log_softmax(portable):
    """Given tokens' logprobs and ranks, and each row's best, equal ones by id; tokens that cannot be have -inf."""
    logits = np.random.default_rng(4).integers(-8, 8, (5, 700)).astype(np.float32)
    logits[1, 5:] = -np.inf
    logits[2] = 0
    tokens = np.array([0, 5, 699, 30, 31], np.uint32)
    result = score(logits, tokens, 9, portable=portable)
    exact = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    np.testing.assert_allclose(result.logprobs, exact[np.arange(5), tokens], rtol=0, atol=2e-6)
    order = np.lexsort((np.broadcast_to(np.arange(700), (5, 700)), -logits))
    assert (result.ranks == (order == tokens[:, None]).argmax(1) + 1).all()
    best = order[:, :9]
    assert (result.top_ids == best).all()
    np.testing.assert_allclose(result.top_logprobs, np.take_along_axis(exact, best, 1), rtol=0, atol=2e-6)
    assert score(logits, tokens, 0).top_ids.shape == (5, 0)


def test_score_of_rows_that_are_not_numbers_is_nan():
    """NaN, infinity and all -inf give NaN, and the rows beside are as they would be alone."""
    logits = np.random.default_rng(4).normal(0, 1, (5, 40)).astype(np.float32)
    clean = score(logits, np.arange(5, dtype=np.uint32), 2)
    logits[0, 39], logits[2, 0], logits[3] = np.nan, np.inf, -np.inf
    result = score(logits, np.arange(5, dtype=np.uint32), 2)
    assert np.isnan(result.logprobs[[0, 2, 3]]).all()
    assert np.isnan(result.top_logprobs[[0, 2, 3]]).all()
    assert (result.top_ids[[0, 2, 3]] == 0).all()
    for mine, alone in zip(result, clean, strict=True):
        assert (mine[[1, 4]] == alone[[1, 4]]).all()


def random_row(random: np.random.Generator, vocab_size: int) -> Row:
    """A row with some of all parameters."""
    some = {
        "top_k": int(random.integers(1, 5000)),
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.9,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.2,
        "logit_bias": {int(token): 2.0 for token in random.integers(0, vocab_size, 5)},
        "allowed_token_ids": tuple(random.integers(0, vocab_size, 900).tolist()),
        "num_logprobs": int(random.integers(0, 20)),
    }
    params = {name: value for name, value in some.items() if random.random() < 0.3}
    params |= {"temperature": float(random.choice([0, 0.4, 1, 1.7])), "seed": int(random.integers(99))}
    tokens = random.integers(0, vocab_size, 300).tolist()
    return row(prompt=tokens[:100], output=tokens[100 : random.integers(100, 300)], **params)


def equal(one: Iterable[NDArray[Any]], other: Iterable[NDArray[Any]]) -> bool:
    """Equal bit for bit, NaN equal to itself."""
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True))


def test_a_row_does_not_depend_on_the_rows_beside_it():
    """Each of many rows with different parameters gives bit for bit the same alone and in any company."""
    random = np.random.default_rng(5)
    logits = random.normal(0, 3, (40, 8_000)).astype(np.float32)
    rows = [random_row(random, 8_000) for _ in range(40)]
    together = sample(logits, rows)
    shuffled = random.permutation(40)
    mixed = sample(logits[shuffled], [rows[number] for number in shuffled])
    assert equal(mixed, [values[shuffled] for values in together])
    for number in range(40):
        alone = sample(logits[number : number + 1], rows[number : number + 1])
        k = alone.top_ids.shape[1]
        assert (together.top_ids[number, k:] == 0).all()
        assert equal(alone, [values[number : number + 1, ...] for values in together[:3]] + [
            values[number : number + 1, :k] for values in together[3:]
        ])  # fmt: skip


def test_vector_instructions_change_nothing():
    """The portable kernels give the same tokens, logprobs and probabilities, bit for bit."""
    random = np.random.default_rng(6)
    logits = random.normal(0, 3, (60, 3_001)).astype(np.float32)
    rows = [random_row(random, 3_001) for _ in range(60)]
    assert equal(sample(logits, rows), sample(logits, rows, portable=True))
    for number in range(60):
        fast, portable = (distribution(logits[number], rows[number], portable=value) for value in (False, True))
        assert (fast == portable).all()


def test_threads_do_not_share_memory():
    """Calls from several threads, which run at once, give what each gives alone."""
    random = np.random.default_rng(8)
    steps = []
    for _ in range(4):
        vocab_size = int(random.integers(5_000, 20_000))
        logits = random.normal(0, 3, (30, vocab_size)).astype(np.float32)
        steps.append((logits, [random_row(random, vocab_size) for _ in range(30)]))
    alone = [sample(*step) for step in steps]
    with ThreadPoolExecutor(4) as threads:
        for results in [list(threads.map(lambda step: sample(*step), steps)) for _ in range(10)]:
            assert all(equal(one, other) for one, other in zip(results, alone, strict=True))


def test_rows_that_are_not_numbers_are_flagged_and_harm_no_other():
    """NaN, infinity and all -inf make a row invalid, with edits and without; its neighbours come out as without it."""
    good = np.random.default_rng(1).normal(0, 2, (3, 50)).astype(np.float32)
    spoiled = np.concatenate([good, good, good])
    spoiled[3, 7], spoiled[4, 9], spoiled[5], spoiled[6, 49], spoiled[7, 9] = np.nan, np.inf, -np.inf, np.nan, np.inf
    plain = row(top_k=5, top_p=0.9, seed=4, num_logprobs=2)
    # The mask and min_tokens hide what is wrong, except from the check; the last row is left without a token.
    edits: list[dict[str, Any]] = [
        {"allowed_token_ids": (1, 2)},
        {"stop_token_ids": (9,), "min_tokens": 1},
        {"allowed_token_ids": (60,)},
    ]
    rows = [plain] * 6 + [row(seed=4, **edit) for edit in edits]
    result, clean = sample(spoiled, rows), sample(good, [plain] * 3)
    assert result.valid.tolist() == [True] * 3 + [False] * 6
    assert equal([values[:3] for values in result], clean)
    for greedy in (True, False):
        assert not sample(spoiled[3:6], [row(temperature=0.0 if greedy else 1.0)] * 3).valid.any()
    with pytest.raises(ValueError, match="no token that could be"):
        distribution(spoiled[5], plain)


def test_a_draw_depends_on_seed_and_position_alone():
    """The same seed at the same place draws the same again; another seed or place draws anew."""
    logits = np.zeros(50_000, np.float32)

    def draw(seed: int, length: int) -> int:
        return int(sample(logits[None], [row(seed=seed, prompt=[3] * length)]).token_ids[0])

    assert draw(1, 7) == draw(1, 7)
    places = [(seed, length) for seed in (1, 2, 3, -1) for length in range(10)]
    assert len({uniform(*place) for place in places}) == 40
    assert [draw(*place) for place in places] == [int(50_000 * uniform(*place)) for place in places]
    assert draw(-1, 3) == draw(2**64 - 1, 3)


def test_uniform_is_splitmix64_at_any_place():
    """Jumping to a position gives what running the published generator that far gives."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    state = mix((42 + 0x9E3779B97F4A7C15) & mask)
    generated = []
    for _ in range(100):
        state = (state + 0x9E3779B97F4A7C15) & mask
        generated.append((mix(state) >> 11) / 2**53)
    assert [uniform(42, position) for position in range(100)] == generated


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"min_p": -0.01},
        {"min_p": 1.5},
        {"typical_p": 1.01},
        {"typical_p": math.nan},
        {"frequency_penalty": math.inf},
        {"presence_penalty": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": math.inf},
        {"logit_bias": {3: math.nan}},
        {"logit_bias": {100: 1.0}},
        {"logit_bias": {-1: 1.0}},
        {"allowed_token_ids": ()},
        {"allowed_token_ids": (5, 100)},
        {"stop_token_ids": (100,)},
        {"num_logprobs": -1},
        {"num_logprobs": 101},
        {"num_prompt_logprobs": 101},
    ],
)
def test_impossible_parameters_are_named(params):
    """Whatever would poison a batch is refused before it gets into one, in a sentence that names it."""
    sentence = invalid(SamplingParams(**{"max_tokens": 1, **params}), 100)
    assert sentence.startswith(next(iter(params)) + " ")
    assert sentence.endswith(".")


def test_extreme_but_valid_parameters_work():
    """A vanishing temperature is greedy, an endless one is even, no penalty or bias makes a row invalid."""
    logits = np.array([[0.0, 3.0, 2.9, -np.inf]], np.float32)
    harmless: list[dict[str, Any]] = [
        {"temperature": 5e-324},
        {"temperature": 1e-30},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"top_k": 1, "seed": -5},
        {"top_k": 1, "seed": 2**70 + 1},
        {"logit_bias": {1: 1e308}},
        {"logit_bias": {0: -1e308, 2: -1e308, 3: 1e308}},
        {"allowed_token_ids": (1, 99), "top_k": 2**80, "min_tokens": 2**80},
        {"num_prompt_logprobs": 100, "num_logprobs": 0, "stop_token_ids": (99,)},
    ]
    for params in harmless:
        assert invalid(SamplingParams(max_tokens=1, **params), 100) is None
        assert sample(logits, [row(**{"temperature": 0.01, **params})]).token_ids.tolist() == [1]
    for extreme in (1e308, -1e308):
        params = {"frequency_penalty": extreme, "presence_penalty": -extreme, "repetition_penalty": abs(extreme)}
        assert invalid(SamplingParams(max_tokens=1, **params), 100) is None
        assert sample(logits, [row(output=[0, 1, 2, 3], **params)]).valid.all()
    for penalty in (5e-324, 1e308):
        assert sample(logits, [row(output=[0, 1, 2, 3], repetition_penalty=penalty)]).valid.all()
    even = distribution(logits[0], row(temperature=1e308, top_p=0.99))
    np.testing.assert_allclose(even, [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_tokens_outside_of_the_vocabulary_are_none():
    """Ids that the model has no logit for, in the context or in parameters, have no effect."""
    logits = np.array([0.5, 1, 2], np.float32)
    params: dict[str, Any] = {
        "frequency_penalty": 1.0,
        "repetition_penalty": 1.5,
        "stop_token_ids": (3, 2**32 - 1),
        "min_tokens": 9,
    }
    odd = row(prompt=[3, 700], output=[2**32 - 1], logit_bias={3: 9.0}, **params)
    plain = row(prompt=[0], output=[], logit_bias={0: 0.0})
    np.testing.assert_allclose(distribution(logits, odd), distribution(logits, plain)[[0, 1, 2]], rtol=1e-6)


def test_arrays_that_do_not_fit_are_refused():
    """Wrong sizes and types are errors, not reads of other memory."""
    logits = np.zeros((2, 10), np.float32)
    with pytest.raises(ValueError, match="an entry per row"):
        sample(logits, [row()])
    with pytest.raises(ValueError, match="num_prompt_tokens"):
        sample(logits[:1], [Row(RowSampler(SamplingParams(max_tokens=1)), array.array("I"), 1)])
    penalized = SamplingParams(max_tokens=1, presence_penalty=1.0)
    with pytest.raises(TypeError, match="token_ids must be"):
        sample(logits[:1], [Row(RowSampler(penalized), array.array("q", [1]), 1)])
    with pytest.raises(TypeError):
        sample(logits.astype(np.float64), [row(), row()])
    with pytest.raises(TypeError):
        sample(np.zeros((10, 2), np.float32).T, [row(), row()])
    with pytest.raises(ValueError, match="not as many tokens"):
        score(logits, np.zeros(2, np.uint32), 11)


def test_caller_may_say_how_many_logprobs_are_due():
    """The result is the same; too few are refused."""
    rows = [row(num_logprobs=2), row()]
    logits = np.zeros((2, 10), np.float32)
    told, found = sample(logits, rows, most_logprobs=2), sample(logits, rows)
    for one, other in zip(told, found, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="less columns"):
        sample(logits, rows, most_logprobs=1)


def test_no_rows():
    """A step that samples nothing gives nothing."""
    result = sample(np.empty((0, 10), np.float32), [])
    assert [len(values) for values in result] == [0] * 5
