"""The sampler against exact probabilities, a plain reference, and its promise that rows do not touch each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rbee.engine.sampler import SamplingBatch, invalid, sample, uniform
from rbee.sampling_params import SamplingParams

# About the upper 1e-6 quantiles of chi-square, by degrees of freedom.
CHI_SQUARE_LIMIT = {3: 31, 4: 34, 7: 42, 11: 50}


def rows(count: int, *, first_position: int = 0, **params: object) -> SamplingBatch:
    """`count` rows with the same parameters at successive positions."""
    sampling = SamplingParams(max_tokens=1, **params)
    return SamplingBatch.of((sampling, first_position + row) for row in range(count))


def expected(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Exact probabilities of each token, the plain way: sort, cut, cut, renormalise."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    weights = {token: math.exp((float(logits[token]) - float(max(logits))) / temperature) for token in order}
    if top_k:
        order = [token for token in order if logits[token] >= logits[order[min(top_k, len(order)) - 1]]]
    total = sum(weights[token] for token in order)
    kept, reached = [], 0.0
    for token in order:
        if reached >= top_p * total and logits[token] != logits[kept[-1]]:
            break
        kept.append(token)
        reached += weights[token]
    return np.array([weights[token] / reached if token in kept else 0 for token in range(len(logits))])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "degrees"),
    [(1.0, 0, 1.0, 11), (0.7, 0, 1.0, 11), (1.5, 5, 1.0, 4), (1.0, 0, 0.9, 7), (0.8, 8, 0.7, 3)],
)
def test_draws_follow_the_distribution(temperature, top_k, top_p, degrees):
    """Over 20,000 draws the counts of each token fit its exact probability, and no other token ever comes."""
    logits = np.array([2.1, 0.3, 1.7, -0.5, 2.0, 1.1, 0.2, 1.4, -1.0, 0.9, 1.9, 0.4], np.float32)
    probabilities = expected(logits, temperature, top_k, top_p)
    draws = 20_000
    batch = rows(draws, temperature=temperature, top_k=top_k, top_p=top_p, seed=12345)
    counts = np.bincount(sample(np.tile(logits, (draws, 1)), batch).token_ids, minlength=len(logits))
    possible = probabilities > 0
    assert possible.sum() == degrees + 1
    assert counts[~possible].sum() == 0
    wanted = probabilities[possible] * draws
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < CHI_SQUARE_LIMIT[degrees]


@settings(max_examples=150, deadline=None)
@given(
    logits=hnp.arrays(np.float32, st.integers(2, 400), elements=st.integers(-20, 20).map(lambda x: x / 4)),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 100, 500]),
    top_p=st.sampled_from([1.0, 0.99, 0.8, 0.3, 0.01]),
    seed=st.integers(0, 2**63),
)
def test_equals_a_plain_reference(logits, temperature, top_k, top_p, seed):
    """The token is the one that inversion of the exact distribution gives for the row's draw, with and without ties."""
    batch = rows(1, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, first_position=3)
    result = sample(logits[None], batch)
    probabilities = expected(logits, temperature, top_k, top_p)
    cumulative = np.cumsum(probabilities)
    draw = uniform(batch.seed, batch.position)[0]
    token = int(result.token_ids[0])
    assert probabilities[token] > 0
    low = cumulative[token] - probabilities[token]
    assert low - 1e-5 <= draw <= cumulative[token] + 1e-5


def test_top_p_looks_beyond_its_first_candidates():
    """With a flat distribution over 5,000 tokens top_p keeps the right number of them, not only the largest few."""
    logits = np.linspace(0, 0.5, 5000, dtype=np.float32)
    draws = 3000
    batch = rows(draws, temperature=1.0, top_p=0.5, seed=1)
    tokens = sample(np.tile(logits, (draws, 1)), batch).token_ids
    lowest = int(np.flatnonzero(expected(logits, 1.0, 0, 0.5))[0])
    assert lowest <= tokens.min() < lowest + 50


def test_greedy_takes_the_lowest_id_of_equal_maxima():
    """Temperature 0 is argmax, and ties go to the lowest id."""
    logits = np.array([[1, 3, 3, 0], [5, 5, 5, 5]], np.float32)
    assert sample(logits, rows(2, temperature=0.0)).token_ids.tolist() == [1, 0]


def test_logprobs_are_of_the_unmodified_logits():
    """The logprob of the chosen token ignores temperature, top-k and top-p."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, (6, 1000)).astype(np.float32)
    result = sample(logits, rows(6, temperature=2.0, top_k=300, top_p=0.9, seed=9))
    assert (result.token_ids != logits.argmax(axis=1)).any()
    wide = logits.astype(np.float64)
    exact = wide[np.arange(6), result.token_ids] - np.log(np.exp(wide).sum(axis=1))
    np.testing.assert_allclose(result.logprobs, exact, rtol=0, atol=2e-5)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    """Each of many rows with different parameters gives bit for bit the same alone and in any company."""
    random = np.random.default_rng(5)
    logits = random.normal(0, 3, (24, 30_000)).astype(np.float32)
    params = [
        (
            SamplingParams(
                max_tokens=1,
                temperature=float(random.choice([0, 0.4, 1, 1.7])),
                top_k=int(random.choice([0, 1, 40, 5000])),
                top_p=float(random.choice([1, 0.95, 0.2])),
                seed=int(random.integers(2**63)),
            ),
            int(random.integers(5000)),
        )
        for _ in range(24)
    ]
    together = sample(logits, SamplingBatch.of(params))
    shuffled = random.permutation(24)
    mixed = sample(logits[shuffled], SamplingBatch.of(params[row] for row in shuffled))
    assert (mixed.token_ids == together.token_ids[shuffled]).all()
    assert (mixed.logprobs == together.logprobs[shuffled]).all()
    for row in range(24):
        alone = sample(logits[row : row + 1], SamplingBatch.of([params[row]]))
        assert (alone.token_ids[0], alone.logprobs[0]) == (together.token_ids[row], together.logprobs[row])


def test_rows_that_are_not_numbers_are_flagged_and_harm_no_other():
    """NaN, infinity and all -inf make a row invalid; its neighbours come out as without it."""
    good = np.random.default_rng(1).normal(0, 2, (3, 50)).astype(np.float32)
    spoiled = np.concatenate([good, good])
    spoiled[3, 7], spoiled[4, 9], spoiled[5] = np.nan, np.inf, -np.inf
    batch = rows(6, temperature=1.0, top_k=5, top_p=0.9, seed=4)
    result, clean = sample(spoiled, batch), sample(good, batch.take(np.arange(3)))
    assert result.valid.tolist() == [True] * 3 + [False] * 3
    assert (result.token_ids[:3] == clean.token_ids).all()
    assert (result.logprobs[:3] == clean.logprobs).all()


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
    assert uniform(np.full(100, 42, np.uint64), np.arange(100, dtype=np.uint64)).tolist() == generated


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 1.01},
        {"top_p": math.nan},
    ],
)
def test_impossible_parameters_are_named(params):
    """Whatever would poison a batch is refused before it gets into one, in a sentence that names it."""
    assert invalid(SamplingParams(**{"max_tokens": 1, **params})).startswith(next(iter(params)))


def test_extreme_but_valid_parameters_work():
    """A vanishing temperature is greedy, top_p 0 keeps the likeliest token, a negative seed is a seed."""
    logits = np.array([[0.0, 3.0, 2.9, -np.inf]], np.float32)
    for params in ({"temperature": 1e-300}, {"temperature": 1e-30}, {"top_p": 0.0}, {"top_k": 1, "seed": -5}):
        sampling = SamplingParams(max_tokens=1, **params)
        assert invalid(sampling) is None
        assert sample(logits, SamplingBatch.of([(sampling, 0)])).token_ids.tolist() == [1]
