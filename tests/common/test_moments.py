"""Rewards of any size give means, deviations and fitness wherever a double can hold the result.

Rewards of ordinary size keep their bits.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from estune import strategy
from estune.common.moments import exponent, mean, scaled
from estune.config import ESConfig
from estune.evaluation import statistics
from estune.monitor.metrics import fitness_metrics
from estune.strategy import shaping
from estune.strategy.shaping import PROMPT_SHAPING, centered, fitness_of, standardized

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-1e100, 1e100).filter(lambda x: x == 0 or abs(x) > 1e-100)
SEVERAL = st.lists(NUMBER, min_size=2, max_size=8).map(np.array)
SIZES = [-1060, -600, 600, 1010]  # powers of two


@given(st.lists(ORDINARY, min_size=2, max_size=8).map(np.array))
def test_ordinary_numbers_give_the_same_bits_as_without_care(values):
    assert exponent(values) == 0
    assert scaled(np.mean, values) == float(values.mean())
    assert scaled(np.std, values) == float(values.std())
    assert mean(values) == math.fsum(values) / values.size


@given(SEVERAL)
def test_a_mean_is_right_whatever_the_sizes(values):
    exact = float(sum(map(Fraction, values.tolist())) / len(values))
    assert mean(values) == pytest.approx(exact, rel=1e-15, abs=1e-323)
    with np.errstate(all="raise", under="ignore"):
        assert math.isfinite(scaled(np.mean, values))
        assert math.isfinite(scaled(np.std, values))


@pytest.mark.parametrize("power", SIZES)
def test_a_deviation_scales_as_its_values_do(power):
    values = np.array([1.0, 2.0, 4.0, -3.0])
    assert scaled(np.std, np.ldexp(values, power)) == math.ldexp(float(values.std()), power)
    figures = fitness_metrics(np.ldexp(values, power))
    assert figures["reward_std"] == math.ldexp(float(values.std()), power)
    assert figures["reward"] == math.ldexp(1.0, power)


@pytest.mark.parametrize("power", SIZES)
@pytest.mark.parametrize("shaping", ["z_score", "centered_rank"])
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("prompt_shaping", [None, *PROMPT_SHAPING])
def test_an_update_does_not_depend_on_the_scale_of_the_rewards(
    power, shaping, antithetic, prompt_shaping
):
    config = ESConfig(
        population_size=4,
        reward_shaping=shaping,
        antithetic=antithetic,
        prompt_shaping=prompt_shaping,
    )
    totals = np.array([[1.0, 8.0], [2.0, -5.0], [4.0, 0.0], [-3.0, np.nan]])
    wanted = strategy.tell(config, fitness_of(config, totals))
    assert strategy.tell(config, fitness_of(config, np.ldexp(totals, power))) == pytest.approx(
        wanted, rel=1e-6
    )


def test_a_huge_reward_beside_ordinary_ones_is_a_z_score_like_another():
    np.testing.assert_allclose(
        shaping.z_score(np.array([1e200, 1.0, 1.0, 1.0])),
        shaping.z_score(np.array([1.0, 0, 0, 0])),
    )


@given(
    st.lists(
        st.lists(NUMBER | st.just(np.nan), min_size=2, max_size=2), min_size=2, max_size=6
    ).map(np.array)
)
def test_the_fitness_of_finite_rewards_is_finite_and_its_coefficients_too(totals):
    for shape in (centered, standardized):
        fitness = shape(totals)
        assert not np.isinf(fitness).any()
        assert (np.isnan(fitness) == np.isnan(totals).all(axis=1)).all()
    if len(totals) % 2 == 0:
        config = ESConfig(population_size=len(totals))
        assert all(map(math.isfinite, strategy.tell(config, fitness_of(config, totals))))


@settings(max_examples=60)
@given(SEVERAL)
def test_intervals_and_tests_of_finite_numbers_are_finite(values):
    with np.errstate(all="raise", under="ignore"):
        found = statistics.mean(values)
        assert found.low <= found.high
        assert max(abs(found.low), abs(found.high)) / (1 + 1e-12) <= np.abs(values).max()
        assert math.isfinite(statistics.standard_error(values))


@settings(max_examples=60)
@given(
    st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=8).map(np.array),
    st.sampled_from(SIZES),
)
def test_a_paired_test_does_not_depend_on_the_scale_of_the_differences(values, power):
    assume(values.any())
    assert statistics.sign_flip(np.ldexp(values, power)) == statistics.sign_flip(values)
