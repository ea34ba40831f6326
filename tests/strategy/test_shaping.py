"""Fitness: one number per member from the rewards (N, B), compared with brute force."""

import itertools
import math

import numpy as np
import pytest
from helpers import assert_same, interrupted, repeatable_steps
from hypothesis import given
from hypothesis import strategies as st

from estune import strategy
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.strategy.shaping import centered, fitness_of, mean, pass_at_k, standardized

NAN = np.nan
REWARD = st.sampled_from([0.0, 0.1, 1.0, 1.1])


@st.composite
def populations(draw, reward=REWARD, most=6):
    """Rewards of some members on some prompts."""
    members, prompts = draw(st.integers(2, most)), draw(st.integers(1, 4))
    return np.array(
        draw(
            st.lists(
                st.lists(reward, min_size=prompts, max_size=prompts),
                min_size=members,
                max_size=members,
            )
        )
    )


@given(populations(st.floats(-1e6, 1e6) | st.just(NAN)))
def test_by_default_it_is_the_mean_over_the_completions_that_got_a_number(totals):
    wanted = [
        math.fsum(row[~np.isnan(row)]) / k if (k := int((~np.isnan(row)).sum())) else NAN
        for row in totals
    ]
    np.testing.assert_array_equal(fitness_of(ESConfig(), totals), wanted)


# Prompt by prompt


@given(populations(st.integers(-5, 5).map(float)))
def test_where_no_reward_is_missing_centring_shifts_all_alike(totals):
    difference = mean(totals) - centered(totals)
    assert np.ptp(difference) < 1e-12


def test_centring_does_not_favour_the_member_that_lacks_the_hard_prompt():
    totals = np.array([[1.0, NAN], [1.0, 0.2], [1.0, 0.2]])  # all do alike wherever they answer
    assert mean(totals).tolist() == [1.0, 0.6, 0.6]
    assert centered(totals).tolist() == pytest.approx([0, 0, 0], abs=1e-15)


@given(populations(st.floats(-10, 10), most=4))
def test_members_with_the_same_rewards_in_another_order_stay_equal_so_that_nothing_is_updated(
    totals,
):
    row = totals[0]
    shuffled = np.array(list(itertools.permutations(row))[:8] * 2)
    assert len(set(centered(shuffled).tolist())) == 1
    config = ESConfig(population_size=len(shuffled), prompt_shaping="center")
    assert strategy.tell(config, fitness_of(config, shuffled)) == []


def test_standardising_gives_every_prompt_the_same_weight_whatever_its_scale():
    small, large = np.array([0.0, 1.0, 2.0]), np.array([300.0, 100.0, 200.0])
    shaped = standardized(np.stack([small, large], axis=1))
    z = np.array([-1.0, 0.0, 1.0]) * 1.5**0.5
    assert shaped.tolist() == pytest.approx(
        [(z[0] + z[2]) / 2, (z[1] + z[0]) / 2, (z[2] + z[1]) / 2]
    )


def test_a_prompt_on_which_all_earn_the_same_tells_nothing():
    thirty = np.full((30, 1), 0.1)
    assert np.std(thirty) > 0, "its deviation does not round to zero"
    assert set(standardized(thirty).tolist()) == {0.0}


@pytest.mark.parametrize(
    "shape", [centered, standardized, lambda totals: pass_at_k(totals, 1, 1.0)]
)
def test_a_member_without_any_reward_has_no_fitness_and_does_not_count_for_others(shape):
    totals = np.array([[1.0, 2.0], [NAN, NAN], [3.0, 0.0], [0.0, 1.0]])
    shaped = shape(totals)
    assert np.isnan(shaped[1])
    assert shaped[[0, 2, 3]].tolist() == shape(totals[[0, 2, 3]]).tolist()


# pass@k


def brute_force_pass(column, k):
    """The part of the k-subsets of those who answered in which somebody passes."""
    subsets = list(itertools.combinations([value for value in column if not np.isnan(value)], k))
    return sum(max(subset) >= 1.0 for subset in subsets) / len(subsets)


@pytest.mark.parametrize("k", [1, 2, 3])
@given(totals=populations(st.sampled_from([0.0, 0.1, 1.0, 1.1, NAN])))
def test_it_is_pass_at_k_with_the_member_minus_without_it(k, totals):
    wanted = []
    for member in range(len(totals)):
        others = np.delete(totals, member, axis=0)
        told = [
            b
            for b in range(totals.shape[1])
            if not np.isnan(totals[member, b]) and (~np.isnan(totals[:, b])).sum() > k
        ]
        gains = [
            brute_force_pass(totals[:, b], k) - brute_force_pass(others[:, b], k) for b in told
        ]
        wanted.append(np.mean(gains) if gains else NAN)
    np.testing.assert_allclose(pass_at_k(totals, k, 1.0), wanted, atol=1e-12)


@given(totals=populations())
def test_pass_at_1_learns_as_the_mean_of_passes_does(totals):
    passes = (totals >= 1.0).astype(float)
    config = ESConfig(population_size=len(totals), learning_rate=1.0)
    assert strategy.tell(config, pass_at_k(totals, 1, 1.0)) == pytest.approx(
        strategy.tell(config, mean(passes)), rel=1e-6, abs=1e-9
    )


def test_with_k_above_1_who_alone_solves_a_prompt_earns_more_than_who_solves_what_all_do():
    totals = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert len(set(pass_at_k(totals, 1, 1.0).tolist())) == 1
    shaped = pass_at_k(totals, 3, 1.0)
    assert shaped[0] > max(shaped[1:])


def test_in_expectation_over_independent_members_it_points_along_the_gradient_of_pass_at_k():
    """Σ fitness·score over all outcomes is exactly the derivative of 1 − (1−p)^k."""
    n, k, p = 5, 3, 0.3
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=n):
        chance = math.prod(p if x else 1 - p for x in outcome)
        scores = [(x - p) / (p * (1 - p)) for x in outcome]  # ∂ log chance / ∂p, by member
        fitness = pass_at_k(np.array(outcome)[:, None], k, 1.0)
        total += chance * sum(f * s for f, s in zip(fitness, scores, strict=True))
    assert total == pytest.approx(k * (1 - p) ** (k - 1))


def test_what_passes_is_a_setting():
    totals = np.array([[0.5], [0.4], [0.1]])
    config = ESConfig(population_size=3, pass_k=2, pass_reward=0.4)
    assert (
        fitness_of(config, totals).tolist()
        == pass_at_k((totals >= 0.4).astype(float), 2, 1.0).tolist()
    )


# In a run


KINDS = [
    {"prompt_shaping": "center"},
    {"prompt_shaping": "standardize"},
    {"pass_k": 2, "pass_reward": -8.0},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_shaped_run_that_died_ends_with_the_same_bytes(make_trainer, tmp_path, kind):
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **kind)
    whole.train()
    folder = interrupted(make_trainer, **kind)
    make_trainer(**kind).train(resume_from_checkpoint=True)
    assert_same(folder, whole.folder.path)


def test_the_journal_has_the_fitness_that_was_told_and_the_metrics_the_plain_reward(
    make_trainer, tmp_path, undisturbed_plain
):
    trainer = make_trainer(prompt_shaping="center")
    result = trainer.train()
    plain, shaped = repeatable_steps(undisturbed_plain), repeatable_steps(trainer.folder.path)
    assert shaped[0]["coefficients"] == pytest.approx(plain[0]["coefficients"], rel=1e-5)
    assert np.mean(shaped[0]["rewards"]) == pytest.approx(0, abs=1e-12)
    assert result.metrics["reward"] < -1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"pass_k": 30},
            "pass_k: must be below population_size, 30; it is 30",
        ),
        (
            {"pass_k": 2, "prompt_shaping": "center"},
            "prompt_shaping: pass_k compares members",
        ),
        ({"prompt_shaping": "rank"}, "prompt_shaping: must be 'center' or 'standardize'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_one_line(settings, says):
    with pytest.raises(ConfigError) as caught:
        ESConfig(**settings)
    assert str(caught.value).startswith(says)
