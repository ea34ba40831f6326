"""`learning_rate: auto`: a run finds α and σ by itself, from what its steps gain.

To first order an update of size α gains (α/σ)·mean(R̃ₙRₙ), which for z-scores is (α/σ)·s with s the deviation of the
members' fitness. Its random part displaces θ by (α/σ)/√N of a member's distance, which costs about (α/σ)²/N·D, with D
what members lose against the centre on the average. So the best α is near σ·N·s/(2D), as far as members are alike.

How alike they are no formula says, so a size is tried before anything moves: the update is evaluated as one more member,
which is the next step's centre. As in a trust region, where it gains less than a quarter of what was promised half
of it is tried too, where more than half twice as much; where all lose more than chance explains, ever smaller ones, and then
none is made. The size that is made is expected of the next step.

What no reward measures suffers with the distance that θ moves. So an update's random part, α/√N a weight, is at most a small
part of the weights' own root mean square, as trust ratios bound a gradient's (You et al. 2017, https://arxiv.org/abs/1708.03888);
σ, which the user may have chosen too small or too large, has no say in it. σ follows the spread: it grows where members tie,
and shrinks where they fall far below the centre, or are better than it by mere damage. α rather than α/σ is handed on, as in
the quadratic above s grows as σ and D as σ², so the best α does not depend on σ.

Pure functions of the config and the journal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune import anneal
from estune.config import ESConfig

Totals = NDArray[np.float64]  # (N, B), NaN where a completion has no reward
Rewards = NDArray[np.float64]  # (B,)

_REACH = 0.04  # of the weights' root mean square, by which an update's random part may displace a weight
_LEAST = 0.5  # α/σ of the first step, at least: the paper's
_FAR = 2.0  # deviations of the members' fitness by which their mean may stay below the centre before σ shrinks
_ABOVE = 0.5  # the same for staying above it: noise that pays on the average pays for damage, as broken answers are short
_RANGE = 16.0  # times which σ may become larger or smaller than the given one
_POOR, _GOOD = 0.25, 0.5  # of the promised gain: below a smaller size is tried too, above a larger one
_MOST = 6  # sizes that are tried in a step
_BETTER = 0.5  # standard errors by which another size has to be better than the expected one
_CHANCE = 1.645  # standard errors by which a candidate may fall below the centre: one in twenty does by chance


@dataclass(frozen=True)
class Plan:
    """What a step begins with: σ of its members, α of its update, None where the population has to tell, and α/√N at most."""

    sigma: float
    alpha: float | None
    reach: float = math.inf


@dataclass(frozen=True)
class Control:
    """What a step found out about its size; in the journal, since the next step begins from it.

    alpha: of the update that was made, 0 when none was.
    tried, gains: sizes α that were tried, and the centre's mean reward after each less that before (None: not a number).
    predicted: what `alpha` was to gain to first order.
    drop: D, the centre's fitness less the members' mean.
    next_alpha, next_sigma: expected of the next step.
    reach: α/√N at most, in all steps.
    """

    alpha: float
    tried: list[float]
    gains: list[float | None]
    predicted: float
    drop: float | None
    next_alpha: float | None
    next_sigma: float
    reach: float

    @property
    def gain(self) -> float:
        """What the update gained on the prompts of its own step."""
        return 0.0 if not self.alpha else (self.gains[self.tried.index(self.alpha)] or 0.0)


def plan(config: ESConfig, step: int, before: dict[str, Any] | None, weights: Callable[[], float]) -> Plan:
    """Of `step`, after one whose control was `before` (None: there was none). `weights` tells θ₀'s root mean square."""
    if config.learning_rate != "auto":
        return Plan(anneal.sigma(config, step), anneal.alpha(config, step))
    if before:
        return Plan(before["next_sigma"], before.get("next_alpha"), before["reach"])
    return Plan(config.sigma, None, float(f"{_REACH * weights():.3g}"))  # few digits: the last ones depend on the processor


def next_size(
    now: Plan, totals: Totals, shaped: Rewards, center: Rewards, tried: Sequence[float], candidates: Sequence[Rewards]
) -> float | None:
    """The size α to try next, the expected one first; None when enough is known.

    Args:
        totals, shaped: the members' rewards (N, B), and R̃ (N,), 0 for those that are left out.
        center, candidates: rewards (B,) of θ, and of θ after each size that was `tried`, on the same prompts.
    """
    most = now.reach * math.sqrt(_present(_means(totals)).size)
    if not tried:
        return min(_expected(now, totals, center), most)
    if best(center, candidates) is None:
        return min(tried) / 2 if len(tried) < _MOST else None
    gain = _mean(candidates[0] - center)
    if len(tried) > 1 or not (candidates[0] - center).any():
        return None
    promised = tried[0] * _slope(now, totals, shaped)
    if not gain >= _POOR * promised:
        return tried[0] / 2
    return min(2 * tried[0], most) if gain > _GOOD * promised and tried[0] < most else None


def best(center: Rewards, candidates: Sequence[Rewards]) -> int | None:
    """Which candidate to make, None where every one loses more than chance explains.

    That is the first, of the expected size, unless it loses or another is better by half a standard error: so where
    nothing is told apart the size stays.

    Args:
        center, candidates: rewards (B,) of θ, and of θ after each size that was tried, on the same prompts.
    """
    bearable = [i for i, candidate in enumerate(candidates) if _score(candidate - center) >= -_CHANCE]
    if not bearable:
        return None
    most = max(bearable, key=lambda i: (_mean(candidates[i] - center), -i))
    keeps = 0 in bearable and _mean(candidates[0] - center) >= 0 and _score(candidates[most] - candidates[0]) <= _BETTER
    return 0 if keeps else most


def learned(
    config: ESConfig,
    now: Plan,
    totals: Totals,
    shaped: Rewards,
    center: Rewards,
    tried: Sequence[float],
    candidates: Sequence[Rewards],
    taken: int | None,
) -> Control:
    """What a step found out.

    Args:
        totals, shaped, center, tried, candidates: as `next_size` has them, and `taken` as `best` tells it.
    """
    fitness = _means(totals)
    there = ~np.isnan(fitness)
    drop = _mean(center) - _mean(fitness)
    gains = [_mean(candidate - center) for candidate in candidates]
    alpha = 0.0 if taken is None else tried[taken]
    return Control(
        alpha=alpha,
        tried=list(tried),
        gains=[None if math.isnan(gain) else gain for gain in gains],
        predicted=alpha * _slope(now, totals, shaped) if alpha else 0.0,
        drop=None if math.isnan(drop) else drop,
        next_alpha=alpha or (min(tried) / 2 if tried else now.alpha),
        next_sigma=_next_sigma(config, now, fitness[there], drop),
        reach=now.reach,
    )


def recorded(control: Control, center: Rewards | None) -> dict[str, Any]:
    """The control as the journal has it; `center` are the rewards of the centre, where the next step asks the same prompts."""
    values = None if center is None else [None if math.isnan(value) else float(value) for value in center]
    return {name: value for name, value in (asdict(control) | {"center": values}).items() if value is not None}


def known_center(before: dict[str, Any] | None) -> Rewards | None:
    """Rewards (B,) of the centre, as the step before left them."""
    values = (before or {}).get("center")
    return None if values is None else np.array([math.nan if value is None else value for value in values])


def _expected(now: Plan, totals: Totals, center: Rewards) -> float:
    """The last step's size; of the first step that which is best on a quadratic, and at least the paper's."""
    if now.alpha is not None:
        return now.alpha
    fitness = _present(_means(totals))
    drop = _mean(center) - _mean(fitness)
    return max(now.sigma * fitness.size * float(fitness.std()) / (2 * drop) if drop > 0 else math.inf, now.sigma * _LEAST)


def _slope(now: Plan, totals: Totals, shaped: Rewards) -> float:
    """What an update gains to first order, divided by its size: mean(R̃ₙRₙ)/σ."""
    fitness = _means(totals)
    there = ~np.isnan(fitness)
    return _mean(shaped[there] * fitness[there]) / now.sigma


def _means(totals: Totals) -> Rewards:
    """The mean reward of each member (N,), NaN for one without any."""
    return np.array([_mean(row) for row in totals])


def _mean(rewards: Rewards) -> float:
    there = _present(rewards)
    return math.fsum(there) / there.size if there.size else math.nan


def _present(rewards: Rewards) -> Rewards:
    return rewards[~np.isnan(rewards)]  # type: ignore[no-any-return]


def _score(differences: Rewards) -> float:
    """The mean of differences on prompts (B,) in its standard errors; ±∞ where all are alike, −∞ where there are none."""
    there = _present(differences)
    mean = _mean(there)
    error = float(there.std(ddof=1)) / math.sqrt(there.size) if there.size > 1 and there.max() > there.min() else 0.0
    if mean == 0 or not there.size:
        return 0.0 if there.size else -math.inf
    return mean / error if error else math.copysign(math.inf, mean)


def _next_sigma(config: ESConfig, now: Plan, fitness: Rewards, drop: float) -> float:
    """σ follows what the members (N,) earned: those that tie teach nothing, those far from the centre are too far off to."""
    if not fitness.size:
        wanted = now.sigma / 2  # none computed numbers
    elif fitness.max() == fitness.min():
        wanted = now.sigma / 2 if drop > 0 else now.sigma * 2
    elif drop < -_ABOVE * float(fitness.std()):
        wanted = now.sigma / 2
    elif drop > _FAR * float(fitness.std()):
        wanted = now.sigma * 0.8
    else:
        wanted = now.sigma
    return min(max(wanted, config.sigma / _RANGE), config.sigma * _RANGE)
