"""`learning_rate: auto`: a run finds α and σ by itself, from what its steps gain.

To first order an update of size α gains (α/σ)·mean(R̃ₙRₙ), which for z-scores is (α/σ)·s with s the deviation of the
members' fitness. Its random part displaces θ by (α/σ)/√N of a member's distance, which costs about (α/σ)²/N·D, with D
what members lose against the centre on the average. So the best α is near σ·N·s/(2D), as far as members are alike.

How alike they are no formula says, so a size is tried before anything moves: the update is evaluated as one more member,
which is the next step's centre. As in a trust region, where it gains less than a quarter of what was promised half
of it is tried too, where more than half twice as much; where all lose more than chance explains, ever smaller ones, and then
none is made. The size that is made is expected of the next step.

What no reward measures suffers with the distance that θ moves. So an update displaces a weight by at most a small part of
the weights' own root mean square, as trust ratios bound a gradient's (You et al. 2017, https://arxiv.org/abs/1708.03888);
σ, which the user may have chosen too small or too large, has no say in it. σ follows the spread: it grows where members tie,
and shrinks where they fall far below the centre, or are better than it by mere damage. α rather than α/σ is handed on, as in
the quadratic above s grows as σ and D as σ², so the best α does not depend on σ.

Pure functions of the config and the journal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import divided, exponent
from estune.common.moments import mean as exact_mean
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.strategy import schedules

Totals = NDArray[np.float64]  # (N, B), NaN where a completion has no reward
PromptRewards = NDArray[np.float64]  # (B,)

_REACH = 0.04  # of the weights' root mean square, by which an update may displace a weight
_LEAST = 0.5  # α/σ of the size that is tried first, at least: the paper's
_FAR = 2.0  # deviations of the members' fitness by which their mean may stay below the centre before σ shrinks
_ABOVE = 0.5  # the same for staying above it: noise that pays on the average pays for damage, as broken answers are short
_SURE = 2.5  # standard errors that this has to be, too
_BACK = 1.1  # times which a σ that shrank grows, towards the given one, in a step that gives no reason to shrink
_RANGE = 16.0  # times which σ may become larger or smaller than the given one
_POOR, _GOOD = (
    0.25,
    0.5,
)  # of the promised gain: below a smaller size is tried too, above a larger one
_OTHER = 1.2  # times which a larger size is larger, at least: the bound wavers in its last digits
_MOST = 6  # sizes that are tried in a step
_BETTER = 0.5  # standard errors by which another size has to be better than the expected one
_CHANCE = 1.645  # standard errors by which a candidate may fall below the centre: one in twenty does by chance


@dataclass(frozen=True)
class Plan:
    """What a step begins with: σ of its members, α of its update, None where the population has to tell, and by how much that
    may displace a weight, in root mean square."""

    sigma: float
    alpha: float | None
    reach: float = math.inf


@dataclass(frozen=True)
class Told:
    """What a step's population told.

    totals: the members' rewards (N, B); two members after each other are a pair where they are antithetic.
    unit: the coefficients of an update of size 1, one a seed; empty, or all 0, where there is nothing to learn.
    center: rewards (B,) of θ on the same prompts.
    finite: how many members computed numbers.
    """

    totals: Totals
    unit: list[float]
    center: PromptRewards
    finite: int

    @cached_property
    def fitness(self) -> PromptRewards:
        """The mean reward of each member (N,), NaN for one without any."""
        return np.array([_mean(row) for row in self.totals])

    @property
    def drop(self) -> float:
        """D, by which members fall below the centre."""
        return _mean(self.center) - _mean(self.fitness)

    def slope(self, sigma: float) -> float:
        """What an update gains to first order, divided by its size: a member's or half a pair's difference is what one σ along ε gains."""
        pairs = len(self.fitness) > len(self.unit)
        gains = (self.fitness[0::2] - self.fitness[1::2]) / 2 if pairs else self.fitness
        return math.fsum(_present(np.array(self.unit) * gains)) / sigma


@dataclass(frozen=True)
class Control:
    """What a step found out about its size; in the journal, since the next step begins from it.

    alpha: of the update that was made, 0 when none was.
    tried, gains: sizes α that were tried, and the centre's mean reward after each less that before (None: not a number).
    predicted: what `alpha` was to gain to first order.
    drop: D, the centre's fitness less the members' mean.
    next_alpha, next_sigma: expected of the next step.
    reach: by how much an update may displace a weight, in all steps.
    """

    alpha: float
    tried: list[float]
    gains: list[float | None]
    predicted: float | None
    drop: float | None
    next_alpha: float | None
    next_sigma: float
    reach: float

    @property
    def gain(self) -> float:
        """What the update gained on the prompts of its own step."""
        return 0.0 if not self.alpha else (self.gains[self.tried.index(self.alpha)] or 0.0)


def comparable(
    told: Told, candidates: Sequence[PromptRewards]
) -> tuple[Told, list[PromptRewards], int]:
    """The same rewards ÷ 2**power, and the power, so that their differences and squares are doubles too; 0 for ordinary ones."""
    power = exponent(told.totals, told.center, *candidates)
    smaller = (
        replace(told, totals=divided(told.totals, power), center=divided(told.center, power))
        if power
        else told
    )
    return smaller, [divided(candidate, power) for candidate in candidates], power


def times(control: Control, power: int) -> Control:
    """The control in rewards that are 2**power larger; a figure that a double cannot hold is None."""
    gains = [_times(gain, power) for gain in control.gains]
    return replace(
        control,
        gains=gains,
        predicted=_times(control.predicted, power),
        drop=_times(control.drop, power),
    )


def _times(figure: float | None, power: int) -> float | None:
    larger = math.nan if figure is None else float(divided(figure, -power))
    return larger if math.isfinite(larger) else None


def plan(
    config: ESConfig, step: int, before: dict[str, Any] | None, weights: Callable[[], float]
) -> Plan:
    """Of `step`, after one whose control was `before` (None: there was none). `weights` tells θ₀'s root mean square."""
    if config.learning_rate != "auto":
        return Plan(schedules.sigma(config, step), schedules.alpha(config, step))
    if before:
        return Plan(before["next_sigma"], before.get("next_alpha"), before["reach"])
    reach = float(f"{_REACH * weights():.3g}")  # few digits: the last ones depend on the processor
    if not reach:
        raise ConfigError(
            "learning_rate: auto measures steps by the size of the weights, and all that are tuned are zero; give a number"
        )
    return Plan(config.sigma, None, reach)


def next_size(
    now: Plan, told: Told, tried: Sequence[float], candidates: Sequence[PromptRewards]
) -> float | None:
    """The size α to try next, the expected one first; None when enough is known, or nothing can be.

    Args:
        candidates: rewards (B,) of θ after each size that was `tried`, on the population's prompts.
    """
    if not any(told.unit) or np.isnan(told.center).all():
        return None
    most = now.reach / math.hypot(*told.unit)
    if not tried:
        return min(_expected(now, told), most)
    if best(told.center, candidates) is None:
        return min(tried) / 2 if len(tried) < _MOST else None
    changes = candidates[0] - told.center
    if len(tried) > 1 or not _present(changes).any():
        return None
    promised = tried[0] * told.slope(now.sigma)
    if not _mean(changes) >= _POOR * promised:
        return tried[0] / 2
    larger = min(2 * tried[0], most)
    return larger if _mean(changes) > _GOOD * promised and larger > _OTHER * tried[0] else None


def best(center: PromptRewards, candidates: Sequence[PromptRewards]) -> int | None:
    """Which candidate to make, None where every one loses more than chance explains.

    That is the first, of the expected size, unless it loses or another is better by half a standard error: so where
    nothing is told apart the size stays.

    Args:
        center, candidates: rewards (B,) of θ, and of θ after each size that was tried, on the same prompts.
    """
    bearable = [
        i for i, candidate in enumerate(candidates) if _score(candidate - center) >= -_CHANCE
    ]
    if not bearable:
        return None
    most = max(bearable, key=lambda i: (_mean(candidates[i] - center), -i))
    keeps = (
        0 in bearable
        and _mean(candidates[0] - center) >= 0
        and _score(candidates[most] - candidates[0]) <= _BETTER
    )
    return 0 if keeps else most


def learned(
    config: ESConfig,
    now: Plan,
    told: Told,
    tried: Sequence[float],
    candidates: Sequence[PromptRewards],
    taken: int | None,
) -> Control:
    """What a step found out; the arguments are those of `next_size`, and `taken` as `best` tells it."""
    gains = [_mean(candidate - told.center) for candidate in candidates]
    alpha = 0.0 if taken is None else tried[taken]
    return Control(
        alpha=alpha,
        tried=list(tried),
        gains=[None if math.isnan(gain) else gain for gain in gains],
        predicted=alpha * told.slope(now.sigma) if alpha else 0.0,
        drop=None if math.isnan(told.drop) else told.drop,
        next_alpha=alpha or (tried[0] / 2 if tried else now.alpha),
        next_sigma=_next_sigma(config, now, told),
        reach=now.reach,
    )


def recorded(control: Control, center: PromptRewards | None) -> dict[str, Any]:
    """The control as the journal has it; `center` are the rewards of the centre, where the next step asks the same prompts."""
    values = (
        None
        if center is None
        else [None if math.isnan(value) else float(value) for value in center]
    )
    return {
        name: value
        for name, value in (asdict(control) | {"center": values}).items()
        if value is not None
    }


def known_center(before: dict[str, Any] | None) -> PromptRewards | None:
    """PromptRewards (B,) of the centre, as the step before left them; None where it has to be asked."""
    values = (before or {}).get("center") or []
    known = any(value is not None for value in values)
    return np.array([math.nan if value is None else value for value in values]) if known else None


def _expected(now: Plan, told: Told) -> float:
    """The last step's size, or that which is best on a quadratic; at least the paper's, lest noise ends the search by halves."""
    fitness, alpha = _present(told.fitness), now.alpha
    if alpha is None:
        alpha = (
            now.sigma * fitness.size * float(fitness.std()) / (2 * told.drop)
            if told.drop > 0
            else math.inf
        )
    return max(alpha, now.sigma * _LEAST)


def _mean(rewards: PromptRewards) -> float:
    there = _present(rewards)
    return exact_mean(there)


def _present(rewards: PromptRewards) -> PromptRewards:
    present: PromptRewards = rewards[~np.isnan(rewards)]
    return present


def _score(differences: PromptRewards) -> float:
    """The mean of differences on prompts (B,) in its standard errors; ±∞ where all are alike, −∞ where there are none."""
    there = _present(differences)
    mean = _mean(there)
    error = (
        float(there.std(ddof=1)) / math.sqrt(there.size)
        if there.size > 1 and there.max() > there.min()
        else 0.0
    )
    if mean == 0 or not there.size:
        return 0.0 if there.size else -math.inf
    return mean / error if error else math.copysign(math.inf, mean)


def _next_sigma(config: ESConfig, now: Plan, told: Told) -> float:
    """σ follows what the members earned: those that tie teach nothing, those far from the centre are too far off to."""
    fitness, drop = _present(told.fitness), told.drop
    spread = float(fitness.std()) if fitness.size else 0.0
    if 2 * told.finite < len(told.totals):
        wanted = now.sigma / 2
    elif fitness.size < 2:
        wanted = now.sigma  # their rewards were lost, which is not theirs to answer for
    elif fitness.max() == fitness.min():
        wanted = now.sigma / 2 if drop > 0 else now.sigma * 2
    elif drop < -spread * max(_ABOVE, _SURE / math.sqrt(fitness.size - 1)):
        wanted = now.sigma / 2
    elif drop > _FAR * spread:
        wanted = now.sigma * 0.8
    else:
        wanted = max(now.sigma, min(now.sigma * _BACK, config.sigma))
    return min(max(wanted, config.sigma / _RANGE), config.sigma * _RANGE)
