"""Ask and tell: populations, shaping, coefficients, batches and seeds."""

from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estune import strategy
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.strategy import shaping
from estune.strategy.shaping import PROMPT_SHAPING

FITNESS = np.array([3.0, -1.0, 4.0, 1.5])


def config(**settings):
    return ESConfig(**{"population_size": 4, "sigma": 0.01} | settings)


def test_coefficients_are_alpha_over_n_times_the_z_score_rounded_to_fp32_once():
    z = (FITNESS - FITNESS.mean()) / FITNESS.std()
    assert strategy.tell(config(learning_rate=0.3), FITNESS) == [
        float(np.float32(0.3 / 4 * value)) for value in z
    ]


def test_equal_fitness_means_no_update_although_its_deviation_does_not_round_to_zero():
    thirty = np.array([0.1] * 30)
    assert np.std(thirty) > 0
    assert strategy.tell(config(population_size=30), thirty) == []


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e-30, 1e200, 8e307])
def test_fitness_of_any_size_that_a_number_can_have_is_normalised_alike(scale):
    fitness = np.array([0.0, 1.0, 2.0, 1.0])
    assert strategy.tell(config(), fitness * scale) == strategy.tell(config(), fitness)


def test_fitness_that_differs_in_its_last_digit_alone_is_still_centred():
    z = shaping.z_score(np.array([0.1, 0.1, np.nextafter(0.1, 1)]))
    assert z.tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5])


def test_a_member_without_fitness_gets_zero_and_the_others_are_normalised_without_it():
    fitness = np.array([3.0, np.nan, 4.0, 1.5])
    rest = fitness[[0, 2, 3]]
    z = (rest - rest.mean()) / rest.std()
    wanted = np.float32(0.005 / 3 * z)
    assert strategy.tell(config(), fitness) == [
        float(wanted[0]),
        0.0,
        float(wanted[1]),
        float(wanted[2]),
    ]


def test_nothing_moves_when_no_member_or_only_one_has_a_fitness():
    assert strategy.tell(config(), np.full(4, np.nan)) == []
    assert strategy.tell(config(), np.array([np.nan, 1.0, np.nan, np.nan])) == []


def mezo(**settings):
    return config(antithetic=True, reward_shaping="none", **settings)


def test_without_shaping_one_pair_makes_the_step_of_mezo():
    lr, sigma, rewards = 3e-6, 0.002, np.array([-7.5, -9.25])
    coefficients = strategy.tell(
        mezo(population_size=2, sigma=sigma, learning_rate=lr / sigma), rewards
    )
    assert coefficients == pytest.approx([lr * (rewards[0] - rewards[1]) / (2 * sigma)], rel=1e-6)


def test_without_shaping_a_step_grows_with_the_rewards():
    pairs, rewards = mezo(population_size=4), np.array([1.0, 0.0, 2.0, 5.0])
    assert strategy.tell(pairs, 10 * rewards) == pytest.approx(
        [10 * c for c in strategy.tell(pairs, rewards)], rel=1e-6
    )


def test_without_shaping_half_a_pair_says_nothing():
    first, second = strategy.tell(mezo(population_size=4), np.array([100.0, np.nan, 2.0, 1.0]))
    assert first == 0
    assert second > 0


def test_without_shaping_members_must_come_in_pairs():
    with pytest.raises(ConfigError, match="reward_shaping: none"):
        config(reward_shaping="none")


def test_an_antithetic_pair_shares_a_seed_and_has_one_coefficient():
    pairs = config(antithetic=True)
    seeds = strategy.ask(pairs, 1)
    assert len(seeds) == 2
    assert [(m.seed, m.sign) for m in strategy.members(pairs, 1, seeds)] == [
        (seeds[0], 1),
        (seeds[0], -1),
        (seeds[1], 1),
        (seeds[1], -1),
    ]
    z = (FITNESS - FITNESS.mean()) / FITNESS.std()
    assert strategy.tell(pairs, FITNESS) == pytest.approx(
        [0.005 / 4 * (z[0] - z[1]), 0.005 / 4 * (z[2] - z[3])], rel=1e-6
    )


def test_half_a_pair_counts_when_the_other_half_has_no_fitness():
    fitness = np.array([3.0, np.nan, 4.0, 1.5])
    rest = fitness[[0, 2, 3]]
    z = (rest - rest.mean()) / rest.std()
    wanted = np.float32(0.005 / 3 * np.array([z[0], z[1] - z[2]]))
    assert strategy.tell(config(antithetic=True), fitness) == wanted.tolist()


@given(
    st.lists(st.integers(-5, 5), min_size=2, max_size=40).filter(
        lambda values: len(set(values)) > 1
    )
)
def test_centered_ranks_sum_to_zero_with_any_ties(values):
    ranks = shaping.centered_rank(np.array(values, float))
    assert abs(ranks.sum()) < 1e-12
    assert all(
        (ranks[i] < ranks[j]) == (values[i] < values[j])
        for i in range(len(values))
        for j in range(len(values))
    )


def test_centered_ranks_spread_evenly_and_ties_share_their_rank():
    assert shaping.centered_rank(FITNESS).tolist() == pytest.approx([1 / 6, -0.5, 0.5, -1 / 6])
    assert shaping.centered_rank(np.array([1.0, 1.0, 2.0])).tolist() == pytest.approx(
        [-0.25, -0.25, 0.5]
    )
    shaped = strategy.tell(config(reward_shaping="centered_rank", learning_rate=1.0), FITNESS)
    assert shaped == pytest.approx([1 / 24, -0.125, 0.125, -1 / 24])


@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=40),
    st.integers(1, 50),
    st.integers(-500, 500),
)
def test_shifting_and_scaling_the_fitness_changes_nothing(values, scale, shift):
    fitness = np.array(values, float)
    settings = config(population_size=max(2, len(values)))
    first, second = (
        strategy.tell(settings, fitness),
        strategy.tell(settings, fitness * scale + shift),
    )
    assert first == pytest.approx(second, rel=1e-4, abs=1e-9)


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=2, max_size=40))
def test_whoever_is_missing_coefficients_are_finite_and_sum_to_nothing(values):
    fitness = np.array([np.nan if value is None else value for value in values])
    coefficients = strategy.tell(config(population_size=len(values)), fitness)
    assert len(coefficients) in (0, len(values))
    assert np.isfinite(coefficients).all()
    assert abs(sum(coefficients)) < 1e-6
    assert all(c == 0 for c, value in zip(coefficients, values, strict=False) if value is None)


def test_seeds_never_repeat_within_a_run_and_adjacent_runs_share_none():
    runs = [
        [
            seed
            for step in range(1, 201)
            for seed in strategy.ask(config(seed=run, population_size=30), step)
        ]
        for run in (41, 42, 43)
    ]
    together = [seed for run in runs for seed in run]
    assert len(set(together)) == len(together) == 3 * 200 * 30
    assert all(0 <= seed < 2**64 for seed in together)


def test_seeds_are_a_function_of_run_seed_and_step_alone():
    assert strategy.ask(config(), 7) == strategy.ask(config(sigma=0.5, learning_rate=3.0), 7)
    assert strategy.ask(config(), 7) != strategy.ask(config(), 8)


def test_mix_is_the_published_finaliser():
    assert strategy.mix(0) == 0xE220A8397B1DCDAF  # SplitMix64's first number from state 0


def test_each_row_is_asked_once_an_epoch_in_an_order_that_changes():
    some = config(batch_size=3)
    order = [row for step in range(1, 9) for row in strategy.batch(some, step, 12)]
    epochs = [order[:12], order[12:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert strategy.batch(some, 5, 12) == strategy.batch(some, 5, 12)


def test_an_epoch_is_shuffled_once_however_large_a_batch_is(monkeypatch):
    calls = 0

    def counted(x, mix=strategy.mix):
        nonlocal calls
        calls += 1
        return mix(x)

    monkeypatch.setattr(strategy, "mix", counted)
    rows = strategy.batch(config(batch_size=500, seed=987_654), 1, 1000)
    assert len(set(rows)) == 500
    assert calls < 1100


def test_without_a_batch_size_or_with_a_large_one_all_rows_are_asked():
    assert strategy.batch(config(), 3, 5) == list(range(5))
    assert strategy.batch(config(batch_size=9), 3, 5) == list(range(5))


def test_a_batch_may_reach_into_the_next_epoch():
    order = [row for step in range(1, 6) for row in strategy.batch(config(batch_size=3), step, 5)]
    assert sorted(order) == sorted(list(range(5)) * 3)


def test_each_shaping_that_the_config_accepts_exists():
    hints = get_type_hints(ESConfig)
    assert set(shaping.SHAPING) == set(get_args(hints["reward_shaping"]))
    assert set(PROMPT_SHAPING) == set(get_args(get_args(hints["prompt_shaping"])[0]))
