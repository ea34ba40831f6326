"""`learning_rate: auto` tries sizes and never makes an update that loses more than chance."""

import json
import math

import numpy as np
import pytest
from helpers import steps_of

from estune import ESConfig, strategy
from estune.common.types import Candidate, Member, Unperturbed
from estune.errors import ConfigError
from estune.monitor.metrics import size_metrics
from estune.strategy.search import PopulationRewards, SizeSearch, best, learn, size_to_try
from estune.strategy.shaping import fitness_of
from estune.strategy.step_size import StepSize, begin

DIMENSIONS, PROMPTS = 300, 8


class Landscape:
    """A function of a vector θ in place of a model: one reward a prompt, which `reward(θ)` gives.

    Its weights are said to be so large that α ≤ 2σ√N.
    """

    def __init__(self, reward, config, start):
        self.reward, self.config, self.theta = reward, config, np.array(start, float)
        self.weights = 50 * config.sigma
        self.step, self.evaluated, self.control, self.searches = 0, 0, None, []

    def epsilon(self, seed):
        return np.random.default_rng(seed).standard_normal(self.theta.size)

    def moved(self, variant):
        if isinstance(variant, Unperturbed):
            return self.theta
        if isinstance(variant, Member):
            return self.theta + variant.sign * variant.sigma * self.epsilon(variant.seed)
        pairs = zip(variant.seeds, variant.coefficients, strict=True)
        return self.theta + sum(c * self.epsilon(seed) for seed, c in pairs)

    def evaluate(self, variant):
        self.evaluated += 1
        return np.asarray(self.reward(self.moved(variant)), float)

    def run(self, steps):
        for _ in range(steps):
            self.step += 1
            seeds = strategy.ask(self.config, self.step)
            size = begin(self.config, self.step, self.control, lambda: self.weights)
            members = strategy.members(self.config, self.step, seeds, size.sigma)
            rewards = np.stack([self.evaluate(member) for member in members])
            reference = (
                self.evaluate(Unperturbed(self.step - 1))
                if size.needs_reference
                else size.reference
            )
            fitness = fitness_of(self.config, rewards)
            search = SizeSearch(self.config, size, rewards, fitness, reference, len(members))
            while (alpha := search.next_size()) is not None:
                candidate = strategy.candidate(self.config, self.step, seeds, fitness, alpha)
                search.add(alpha, self.evaluate(candidate))
            coefficients = strategy.tell(self.config, fitness, alpha=search.alpha)
            self.control = json.loads(json.dumps(search.record(same_prompts=True)))
            if coefficients:
                self.theta = self.moved(Candidate(tuple(seeds), tuple(coefficients), "iid", 0))
            self.searches.append(search)
        return self

    @property
    def value(self):
        return float(np.mean(self.reward(self.theta)))


def auto(**settings):
    return ESConfig(**{"learning_rate": "auto", "population_size": 16, "sigma": 0.01} | settings)


def quadratic(curvature=1.0, noise=0.0):
    """−½·h·|θ−1|², and on each prompt a bumpiness of its own that is `noise` high."""
    bumps = np.random.default_rng(0).standard_normal((PROMPTS, DIMENSIONS))

    def reward(theta):
        return -0.5 * curvature * ((theta - 1) ** 2).sum() + noise * np.sin(bumps @ theta * 50)

    return reward


@pytest.mark.parametrize("curvature", [0.01, 1, 100])
@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_it_climbs_a_quadratic_of_any_curvature_with_sigma_halved_and_doubled(sigma, curvature):
    """In 300 dimensions 16 members can remove about a twentieth of the distance per step."""
    found = Landscape(quadratic(curvature), auto(sigma=sigma), np.zeros(DIMENSIONS))
    before = found.value
    assert found.run(30).value > 0.35 * before


def test_it_needs_no_more_evaluations_than_the_best_fixed_size_and_far_fewer_than_the_papers():
    def needed(config):
        one = Landscape(quadratic(), config, np.zeros(DIMENSIONS))
        wanted = one.value / 2
        while one.value < wanted and one.step < 500:
            one.run(1)
        return one.evaluated if one.value >= wanted else math.inf

    fixed = {
        ratio: needed(auto(sigma=0.1, learning_rate=0.1 * ratio)) for ratio in (0.5, 1, 2, 4, 8)
    }
    found = needed(auto(sigma=0.1))
    assert found < 1.5 * min(fixed.values())
    assert found < fixed[0.5] / 3


def test_noise_in_the_rewards_neither_stops_it_nor_lets_it_run_away():
    runs = [
        Landscape(quadratic(noise=5.0), auto(sigma=0.1, seed=seed), np.zeros(DIMENSIONS))
        for seed in range(4)
    ]
    before = runs[0].value
    assert np.mean([one.run(40).value for one in runs]) > 0.75 * before
    assert all(found.learned.next_alpha > 0.001 for one in runs for found in one.searches), (
        "halves upon halves would end the search"
    )


def test_what_is_made_never_loses_more_than_chance_explains():
    one = Landscape(quadratic(100, noise=5.0), auto(sigma=0.1), np.zeros(DIMENSIONS))
    for _ in range(20):
        before = np.asarray(one.reward(one.theta))
        one.run(1)
        change = np.asarray(one.reward(one.theta)) - before
        assert change.mean() >= -1.645 * change.std(ddof=1) / math.sqrt(PROMPTS) - 1e-9


def test_on_a_summit_nothing_moves_any_more():
    one = Landscape(lambda theta: -np.full(PROMPTS, (theta**2).sum()), auto(), np.zeros(DIMENSIONS))
    one.run(3)
    assert not one.theta.any()
    assert [search.alpha for search in one.searches] == [0, 0, 0]
    assert all(size_metrics(s.learned, s.new_reference)["es/refused"] for s in one.searches)
    assert all(len(found.learned.tried) == 6 for found in one.searches)


def test_members_that_tie_widen_sigma_until_they_differ():
    """A step of a staircase that members of the first σ do not reach."""
    one = Landscape(
        lambda theta: np.full(PROMPTS, float(theta.sum() > 0.5)),
        auto(sigma=0.001),
        np.zeros(DIMENSIONS),
    )
    one.weights = 1.0
    one.run(7)
    widths = [found.learned.next_sigma for found in one.searches]
    assert widths[:3] == [0.002, 0.004, 0.008]
    assert one.value == 1.0


def test_sigma_stays_within_sixteen_times_the_given_one():
    one = Landscape(lambda theta: np.zeros(PROMPTS), auto(), np.zeros(DIMENSIONS)).run(8)
    assert one.searches[-1].learned.next_sigma == pytest.approx(0.16)
    assert not one.theta.any()


def test_members_that_are_all_worse_by_far_narrow_sigma():
    one = Landscape(
        lambda theta: -np.full(PROMPTS, (theta**2).sum() ** 2),
        auto(sigma=0.1),
        np.zeros(DIMENSIONS),
    ).run(2)
    assert one.searches[1].learned.next_sigma < 0.1


def test_members_that_are_better_than_the_centre_by_mere_noise_narrow_sigma():
    """The reward pays for distance in whatever direction, as broken answers may be short."""
    one = Landscape(
        lambda theta: np.full(PROMPTS, (theta**2).sum()), auto(sigma=0.1), np.zeros(DIMENSIONS)
    ).run(1)
    assert one.searches[0].learned.next_sigma == 0.05


TOTALS = np.array([[1.0], [3.0]] * 8)  # fitness 1 and 3: spread 1, mean 2
UNIT = [-1 / 16, 1 / 16] * 8  # so a size of 0.1 promises a gain of 1 where σ = 0.1


def told(center, totals=TOTALS, unit=UNIT, finite=16):
    return PopulationRewards(totals, unit, np.array([center]), finite)


def tried_next(now, center, *tried):
    """The size to try after sizes of which each gained that much."""
    return size_to_try(
        now,
        told(center),
        [size for size, _ in tried],
        [np.array([center + gain]) for _, gain in tried],
    )


def after(now, seen, *tried):
    """What a step found out that made none of the sizes that it tried."""
    return learn(auto(sigma=0.1), now, seen, list(tried), [np.array([-9.0])] * len(tried), None)


def test_the_first_size_follows_from_the_spread_and_the_drop():
    assert tried_next(StepSize(0.1, None, 0.3), 6.0) == pytest.approx(0.2)  # σ·N·s/2D
    assert tried_next(StepSize(0.1, None, 0.3), 1.0) == pytest.approx(1.2), "no drop: the bound"
    assert tried_next(StepSize(0.1, None, 0.3), 99.0) == pytest.approx(0.05), (
        "the paper's, at least"
    )
    assert tried_next(StepSize(0.1, 0.06, 0.3), 6.0) == pytest.approx(0.06)


def test_a_size_that_keeps_half_its_promise_is_doubled_and_one_that_keeps_no_quarter_is_halved():
    now = StepSize(0.1, 0.1, 0.3)
    assert tried_next(now, 6.0, (0.1, 0.51)) == pytest.approx(0.2)
    assert tried_next(now, 6.0, (0.1, 0.49)) is None
    assert tried_next(now, 6.0, (0.1, 0.26)) is None
    assert tried_next(now, 6.0, (0.1, 0.24)) == pytest.approx(0.05)
    assert tried_next(now, 6.0, (0.1, 0.51), (0.2, 5.0)) is None, "once a step"
    assert tried_next(now, 6.0, (0.1, 0.0)) is None, (
        "nothing changed: that tells nothing of the size"
    )


def test_a_size_that_cannot_be_borne_is_halved_until_one_can_be_or_six_were_tried():
    now = StepSize(0.1, 0.1, 0.3)
    lost = [(0.1 / 2**i, -1.0) for i in range(6)]
    assert [tried_next(now, 6.0, *lost[:i]) for i in range(1, 6)] == pytest.approx(
        [0.1 / 2**i for i in range(1, 6)]
    )
    assert tried_next(now, 6.0, *lost) is None
    assert tried_next(now, 6.0, *lost[:2], (0.025, 0.1)) is None
    assert tried_next(now, 6.0, (0.1, math.nan)) == pytest.approx(0.05)


def test_no_size_moves_the_centre_farther_than_a_small_part_of_its_weights():
    now = begin(auto(), 1, None, lambda: 5.0)
    assert now.reach == pytest.approx(0.2)  # 4 %
    assert tried_next(StepSize(0.1, 0.6, now.reach), 6.0, (0.6, 6.0)) == pytest.approx(0.8)
    assert tried_next(StepSize(0.1, 9.9, now.reach), 6.0) == pytest.approx(0.8)
    assert tried_next(StepSize(0.1, 0.7, now.reach), 6.0, (0.7, 8.0)) is None, (
        "as good as at the bound"
    )


@pytest.mark.parametrize(
    "settings", [{}, {"antithetic": True}, {"reward_shaping": "centered_rank"}], ids=str
)
def test_the_bound_is_how_far_the_update_goes_whatever_its_shaping(settings):
    config = auto(sigma=0.1, **settings)
    fitness = np.random.default_rng(1).standard_normal(16)
    unit = strategy.tell(config, fitness, alpha=1.0)
    size = size_to_try(StepSize(0.1, 1e9, 0.02), told(0.0, fitness[:, None], unit), [], [])
    update = strategy.tell(config, fitness, alpha=size)
    weights = sum(
        c * np.random.default_rng(seed).standard_normal(100_000) for seed, c in enumerate(update)
    )
    assert np.sqrt(np.mean(weights**2)) == pytest.approx(0.02, rel=0.02)


def test_a_pair_promises_by_its_difference_alone():
    """Both members of each pair gain 5 by curvature, which no update along ε does."""
    fitness = np.array([6.0, 4.0, 4.5, 5.5])
    unit = strategy.tell(auto(antithetic=True, population_size=4), fitness, alpha=1.0)
    assert told(0.0, fitness[:, None], unit, 4).slope(0.1) == pytest.approx(
        (unit[0] * 1 - unit[1] * 0.5) / 0.1, rel=1e-6
    )


def test_a_centre_without_rewards_is_no_reason_to_try_or_to_change_anything():
    now = StepSize(0.1, 0.06, 0.3)
    assert tried_next(now, math.nan) is None
    found = after(now, told(math.nan))
    assert (found.next_alpha, found.next_sigma, found.alpha) == (0.06, 0.1, 0.0)
    record = json.loads(json.dumps(found.record(np.array([math.nan]))))
    assert begin(auto(), 2, record, lambda: 1.0).needs_reference


def test_after_a_refusal_half_of_what_was_expected_is_but_no_vanishing_size():
    assert after(StepSize(0.1, 0.4, 0.3), told(6.0), 0.4, 0.2, 0.1).next_alpha == pytest.approx(0.2)
    assert tried_next(StepSize(0.1, 0.001, 0.3), 6.0) == pytest.approx(0.05), (
        "the paper's, at least"
    )


def sigma_after(center, totals=TOTALS, finite=16, sigma=0.1):
    return after(StepSize(sigma, 0.1, 0.3), told(center, totals, finite=finite)).next_sigma


def test_sigma_shrinks_where_it_is_too_wide_and_comes_back_where_nothing_says_so():
    assert sigma_after(2.0) == pytest.approx(0.1)
    assert sigma_after(2.0, sigma=0.05) == pytest.approx(0.055)
    assert sigma_after(2.0, sigma=0.2) == pytest.approx(0.2), "it was wider for a reason"
    assert sigma_after(4.1) == pytest.approx(0.08)
    assert sigma_after(1.3) == pytest.approx(0.05)
    assert sigma_after(1.4) == pytest.approx(0.1), "within chance of sixteen members"


def test_sigma_halves_where_most_members_compute_no_numbers_and_stays_where_rewards_are_lost():
    lost, one = np.full((16, 1), math.nan), np.array([[1.0]] + [[math.nan]] * 15)
    assert sigma_after(2.0, lost, finite=16) == pytest.approx(0.1)
    assert sigma_after(2.0, lost, finite=0) == pytest.approx(0.05)
    assert sigma_after(1.0, one, finite=1) == pytest.approx(0.05)
    assert sigma_after(1.0, one, finite=16) == pytest.approx(0.1), "one member cannot tie"


def test_weights_that_are_all_zero_are_refused_in_one_line():
    with pytest.raises(
        ConfigError, match="^learning_rate: auto measures steps by the size of the weights, and all"
    ):
        begin(auto(), 1, None, lambda: 0.0)


def test_one_prompt_is_enough(make_trainer):
    trainer = make_trainer(learning_rate="auto", batch_size=1)
    trainer.train()
    assert all(len(step["control"]["tried"]) for step in steps_of(trainer))


def test_the_bound_does_not_hang_on_the_last_digits_of_the_weights_size():
    assert (
        begin(auto(), 1, None, lambda: 0.1828110690).reach
        == begin(auto(), 1, None, lambda: 0.1828110691).reach
    )


def test_the_best_candidate_is_taken_and_of_equal_ones_the_expected():
    center = np.zeros(4)
    assert best(center, [np.ones(4), 2 * np.ones(4), np.zeros(4)]) == 1
    assert best(center, [np.ones(4), np.ones(4), np.ones(4)]) == 0
    assert best(center, [np.full(4, np.nan), np.ones(4)]) == 1
    assert best(center, [np.full(4, np.nan)]) is None
    assert best(center, []) is None


def test_where_sizes_are_not_told_apart_the_expected_one_stays():
    """Two prompts better, two worse by nearly as much; then three better."""
    center, other = np.zeros(16), np.zeros(16)
    other[:4] = [1, 1, -1, -0.9]
    assert best(center, [center, other]) == 0
    other[:4] = [1, 1, 1, 0]
    assert best(center, [center, other]) == 1


def test_the_expected_size_gives_way_to_any_that_can_be_borne_when_it_cannot():
    assert best(np.zeros(4), [np.full(4, -1.0), np.array([0.0, 0, 0, -1])]) == 1


def test_a_loss_on_one_prompt_of_many_is_chance_and_one_on_all_is_not():
    one_of_sixteen = np.zeros(16)
    one_of_sixteen[3] = -1
    assert best(np.zeros(16), [one_of_sixteen]) == 0
    assert best(np.zeros(16), [np.full(16, -0.01)]) is None


def test_of_sizes_that_lose_within_chance_the_one_that_loses_least_is_made():
    assert best(np.zeros(4), [np.array([0.0, 0, 0, -1]), np.array([0.0, 0, 0, -0.9])]) == 1
