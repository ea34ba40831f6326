"""What evaluation says is right: each figure against brute force or scipy."""

import itertools
import math

import numpy as np
import pytest

from estune.evaluation.statistics import mean, sign_flip, standard_error, wilson
from estune.strategy.shaping import pass_chance

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("samples", "successes"), [(1, 0), (1, 1), (5, 2), (6, 0), (6, 6), (7, 1)])
def test_pass_at_k_is_the_fraction_of_choices_of_k_samples_with_a_success(samples, successes):
    outcomes = [True] * successes + [False] * (samples - successes)
    for k in range(1, samples + 1):
        choices = list(itertools.combinations(outcomes, k))
        assert float(pass_chance(samples, successes, k)) == pytest.approx(
            sum(map(any, choices)) / len(choices)
        )


def test_pass_at_1_is_the_fraction_of_successes_and_many_samples_do_not_overflow():
    assert float(pass_chance(8, 3, 1)) == pytest.approx(3 / 8)
    assert 0 < float(pass_chance(5000, 1, 2500)) < 1


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (3, 10), (517, 1000)])
def test_the_interval_of_a_fraction_is_scipys_wilson_interval(successes, count):
    from scipy.stats import binomtest

    wanted = binomtest(successes, count).proportion_ci(method="wilson")
    ours = wilson(successes, count)
    assert (ours.low, ours.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert ours.value == successes / count


def test_the_interval_of_a_mean_is_scipys_percentile_bootstrap_up_to_its_own_noise():
    from scipy.stats import bootstrap

    values = RNG.exponential(size=60)
    wanted = bootstrap(
        [values], np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = mean(values)
    assert (ours.low, ours.high) == pytest.approx((wanted.low, wanted.high), rel=0.02)
    assert ours == mean(values)  # seeded


def test_intervals_of_means_hold_the_truth_about_as_often_as_they_say():
    draws = [mean(np.random.default_rng(seed).normal(size=50)) for seed in range(200)]
    assert 0.88 <= np.mean([one.low <= 0 <= one.high for one in draws]) <= 0.99


def test_what_got_no_number_is_left_out_and_nothing_is_known_of_nothing():
    assert mean([1.0, math.nan, 3.0]).value == 2.0
    assert math.isnan(mean([math.nan]).value)
    assert math.isnan(wilson(0, 0).value)


def test_the_standard_error_is_scipys():
    from scipy.stats import sem

    values = RNG.normal(size=17)
    assert standard_error(values) == pytest.approx(sem(values))
    assert math.isnan(standard_error([1.0]))


@pytest.mark.parametrize("count", [1, 2, 5, 11])
def test_the_paired_test_tries_every_sign_and_agrees_with_scipy(count):
    from scipy.stats import permutation_test

    values = RNG.normal(0.5, size=count)
    ours = sign_flip(values)
    assert ours.exact
    if count > 1:
        wanted = permutation_test([values], np.mean, permutation_type="samples", n_resamples=np.inf)
        assert ours.p == pytest.approx(wanted.pvalue)
    brute = [
        abs(np.dot(signs, values)) >= abs(values.sum()) - 1e-12
        for signs in itertools.product((1, -1), repeat=count)
    ]
    assert ours.p == pytest.approx(np.mean(brute))


def test_many_pairs_are_tested_by_seeded_draws_close_to_the_t_test():
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(3).normal(0.25, size=80)
    ours = sign_flip(values)
    assert not ours.exact
    assert ours.p == pytest.approx(ttest_1samp(values, 0).pvalue, rel=0.25)
    assert ours == sign_flip(values)


def test_equal_models_do_not_differ_and_a_p_value_is_never_zero():
    assert sign_flip([0.0] * 30).p == 1.0
    assert sign_flip([]).p == 1.0
    assert 0 < sign_flip([1.0] * 40).p < 1e-4
    assert sign_flip([1.0, 1.0, 1.0] + [0.0] * 50).p == pytest.approx(
        0.25
    )  # zeros say nothing about direction


def test_the_paired_test_is_right_about_as_often_as_it_says_where_nothing_differs():
    ps = [sign_flip(np.random.default_rng(seed).normal(size=12)).p for seed in range(400)]
    assert np.mean(np.array(ps) <= 0.05) == pytest.approx(0.05, abs=0.03)
