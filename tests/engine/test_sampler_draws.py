"""Draws against exact probabilities, and what filters leave of awkward logits against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rbee.engine.sampler import distribution, sample, uniform
from tests.engine.sampling_reference import count_draws, row, transformers_distribution

DRAWS = 20_000
LOGITS = np.array([2.1, 0.3, 1.7, -0.5, 2.0, 1.1, 0.2, 1.4, -1.0, 0.9, 1.9, 0.4], np.float32)
# About the upper 1e-6 quantiles of chi-square, by degrees of freedom.
CHI_SQUARE_LIMIT = {2: 28, 3: 31, 4: 34, 5: 37, 6: 40, 7: 42, 10: 48, 11: 50}


@pytest.mark.parametrize(
    ("params", "tokens"),
    [
        ({}, 12),
        ({"temperature": 0.5}, 12),
        ({"temperature": 1.8}, 12),
        ({"top_k": 5}, 5),
        ({"top_p": 0.8}, 6),
        ({"min_p": 0.4}, 5),
        ({"typical_p": 0.6}, 5),
        ({"repetition_penalty": 1.5, "prompt": [0, 3, 3], "output": [4]}, 12),
        ({"frequency_penalty": 0.6, "prompt": [0], "output": [4, 4, 2]}, 12),
        ({"presence_penalty": 0.9, "prompt": [0], "output": [4, 4, 2]}, 12),
        ({"logit_bias": {8: 2.5, 0: -1.5}}, 12),
        ({"allowed_token_ids": (1, 5, 8, 11)}, 4),
        ({"stop_token_ids": (0,), "min_tokens": 3, "output": [1, 1]}, 11),
        ({"temperature": 0.7, "top_k": 8, "top_p": 0.9, "min_p": 0.2, "typical_p": 0.9}, 5),
        ({"logit_bias": {3: 3.0}, "presence_penalty": 0.5, "output": [3, 6], "temperature": 1.3, "top_p": 0.7}, 6),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params, tokens):
    """Over 20,000 seeds the counts of each token fit its exact probability, and no other token ever comes."""
    probabilities = transformers_distribution(LOGITS, **params)
    counts = count_draws(LOGITS, DRAWS, **params)
    possible = probabilities > 0
    assert possible.sum() == tokens
    assert counts[~possible].sum() == 0
    wanted = probabilities[possible] * DRAWS
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < CHI_SQUARE_LIMIT[tokens - 1]


def test_draws_over_many_blocks_follow_the_distribution():
    """Counts of ranges of a large vocabulary fit, with and without filters."""
    logits = np.random.default_rng(2).normal(0, 1.5, 4_000).astype(np.float32)
    for params in ({}, {"top_k": 3_000}, {"top_p": 0.7}, {"typical_p": 0.8}):
        wanted = transformers_distribution(logits, **params).reshape(8, 500).sum(1) * 4_000
        counts = count_draws(logits, 4_000, **params).reshape(8, 500).sum(1)
        assert ((counts - wanted) ** 2 / wanted).sum() < CHI_SQUARE_LIMIT[7]


def test_draws_over_many_blocks_invert_the_distribution():
    """The token is the first whose running sum of probabilities is beyond the draw, in whichever block that is."""
    logits = np.random.default_rng(4).normal(0, 1, 5_000).astype(np.float32)
    for params in ({}, {"top_k": 4_000}, {"top_p": 0.9}):
        rows = [row(seed=seed, **params) for seed in range(1_000)]
        tokens = sample(np.tile(logits, (1_000, 1)), rows).token_ids
        reached = distribution(logits, rows[0]).cumsum()
        assert (tokens == np.searchsorted(reached, [uniform(seed, 0) for seed in range(1_000)], side="right")).all()


def test_draws_at_the_edges_of_blocks_follow_the_distribution():
    """The first and last tokens of the kernels' blocks, alone in their blocks or with others, come as often as due."""
    edges = [0, 511, 512, 1023, 1024, 1535]
    for others in (-np.inf, -6.0):
        logits = np.full(1536, others, np.float32)
        logits[edges] = 0
        counts = count_draws(logits, 6_000)[edges]
        wanted = transformers_distribution(logits)[edges] * 6_000
        assert ((counts - wanted) ** 2 / wanted).sum() < CHI_SQUARE_LIMIT[5]


FINITE = st.floats(-(2.0**127), 2.0**127, width=32)
AWKWARD = st.one_of(
    st.integers(-20, 20).map(lambda x: x / 4),  # ties
    st.floats(-30, 30, width=32),
    st.just(-np.inf),
    FINITE,
    st.floats(-(2.0**-126), 2.0**-126, width=32),  # denormals
    st.sampled_from([0.0, -0.0, 1.0, 88.0, -88.0]),
)


@st.composite
def awkward_logits(draw):
    """1 to 100 logits of one kind or of all; at least one token can be."""
    elements = draw(st.sampled_from([AWKWARD, AWKWARD, st.sampled_from([0.0, 1.0]), st.sampled_from([-np.inf, 3.0])]))
    logits = draw(hnp.arrays(np.float32, st.integers(1, 100), elements=elements))
    if np.isneginf(logits).all():
        logits[draw(st.integers(0, len(logits) - 1))] = draw(FINITE)
    return logits


def weights_of(logits, temperature):
    """Exact weights, where the most likely token has 1. What is below 2^-126 may be 0 to the sampler."""
    with np.errstate(invalid="ignore", over="ignore"):
        exponents = (logits.astype(np.float64) - float(logits.max())) / temperature
        return np.exp(exponents)


def check_token(logits, row_, probabilities):
    """The row's token is the one that inversion of the distribution gives for its draw, also without AVX2."""
    result = sample(logits[None], [row_])
    token = int(result.token_ids[0])
    assert result.valid[0]
    assert probabilities[token] > 0
    reached = probabilities[: token + 1].sum()
    drawn = uniform(12, len(row_.token_ids))
    assert reached - probabilities[token] - 1e-12 <= drawn <= reached + 1e-12
    assert sample(logits[None], [row_], portable=True).token_ids[0] == token
    assert (distribution(logits, row_, portable=True) == probabilities).all()


def left_of(logits, temperature, **params):
    """(exact weights, which tokens can be drawn), after checks of what holds for all parameters."""
    row_ = row(temperature=temperature, seed=12, prompt=[0] * 5, **params)
    probabilities = distribution(logits, row_)
    check_token(logits, row_, probabilities)
    weights = weights_of(logits, temperature)
    left = probabilities > 0
    assert left.any()
    assert (weights[left] > 0).all()
    np.testing.assert_allclose(probabilities[left], weights[left] / weights[left].sum(), rtol=5e-5)
    return weights, left


TEMPERATURES = st.sampled_from([1.0, 1.0, 0.5, 2.0, 0.001, 1000.0])
NEARLY = 1e-6
NEGLIGIBLE = 1e-37


@settings(max_examples=150, deadline=None)
@given(logits=awkward_logits(), temperature=TEMPERATURES)
def test_awkward_logits(logits, temperature):
    """Without filters every token that has a weight can be drawn."""
    weights, left = left_of(logits, temperature)
    assert left[weights > NEGLIGIBLE].all()


@settings(max_examples=150, deadline=None)
@given(logits=awkward_logits(), temperature=TEMPERATURES, top_k=st.integers(1, 110))
def test_top_k_of_awkward_logits(logits, temperature, top_k):
    """Those stay that fewer than k tokens are more likely than."""
    weights, left = left_of(logits, temperature, top_k=top_k)
    more_likely = (logits[None] > logits[:, None]).sum(1)
    assert left[(more_likely < top_k) & (weights > NEGLIGIBLE)].all()
    # With a great temperature, different logits may be equally likely.
    kth = np.sort(weights)[::-1][min(top_k, len(weights)) - 1]
    assert (weights[left] >= kth * (1 - NEARLY)).all()


@settings(max_examples=150, deadline=None)
@given(logits=awkward_logits(), temperature=TEMPERATURES, top_p=st.floats(0, 0.999))
def test_top_p_of_awkward_logits(logits, temperature, top_p):
    """The most likely stay, as many as are needed and, but for ties, no more."""
    weights, left = left_of(logits, temperature, top_p=top_p)
    probabilities = weights / weights.sum()
    least = logits[left].min()
    assert left[(logits >= least) & (weights > NEGLIGIBLE)].all()
    assert probabilities[left].sum() >= top_p - NEARLY
    if least < logits.max():
        assert probabilities[weights > weights[logits == least].max() * (1 + NEARLY)].sum() < top_p + NEARLY


@settings(max_examples=150, deadline=None)
@given(logits=awkward_logits(), temperature=TEMPERATURES, min_p=st.floats(0.001, 1))
def test_min_p_of_awkward_logits(logits, temperature, min_p):
    """Those stay that are at least min_p times as likely as the most likely one."""
    weights, left = left_of(logits, temperature, min_p=min_p)
    assert left[weights >= min_p * (1 + NEARLY)].all()
    assert left[logits == logits.max()].all()
    assert (weights[left] >= min_p * (1 - NEARLY)).all()


@settings(max_examples=150, deadline=None)
@given(logits=awkward_logits(), temperature=TEMPERATURES, typical_p=st.floats(0, 0.999))
def test_typical_p_of_awkward_logits(logits, temperature, typical_p):
    """Those stay whose information is nearest to the entropy, as many as are needed and, but for ties, no more."""
    weights, left = left_of(logits, temperature, typical_p=typical_p)
    possible = weights > NEGLIGIBLE
    probabilities = weights[possible] / weights[possible].sum()
    information = -np.log(probabilities)
    distance = np.abs(information - (probabilities * information).sum())
    left = left[possible]
    farthest = distance[left].max()
    assert left[distance < farthest - 1e-4].all()
    assert probabilities[left].sum() >= typical_p - NEARLY
    needed = distance < farthest - 1e-4
    if needed.any():
        assert probabilities[needed].sum() < typical_p + NEARLY


@settings(max_examples=150, deadline=None)
@given(
    logits=awkward_logits(),
    temperature=TEMPERATURES,
    filters=st.fixed_dictionaries(
        {
            "top_k": st.sampled_from([0, 1, 3, 40]),
            "top_p": st.sampled_from([1.0, 0.9, 0.3]),
            "min_p": st.sampled_from([0.0, 0.05, 0.7]),
            "typical_p": st.sampled_from([1.0, 0.8]),
        }
    ),
)
def test_a_combination_leaves_no_more_than_each_before_it(logits, temperature, filters):
    """Filters only remove, whatever comes after which, and what they leave keeps its proportions."""
    _, left = left_of(logits, temperature, **filters)
    for first in (["top_k"], ["top_k", "top_p"], ["min_p"]):
        fewer = {name: filters[name] for name in first}
        assert not (left & (distribution(logits, row(temperature=temperature, **fewer)) == 0)).any()
