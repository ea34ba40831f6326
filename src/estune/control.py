"""`learning_rate: auto`: a run finds α and σ by itself, from what its steps gain.

To first order an update of size α gains (α/σ)·mean(R̃ₙRₙ), which for z-scores is (α/σ)·s with s the deviation of the
members' fitness. Its random part displaces θ by (α/σ)/√N of a member's distance, which costs about (α/σ)²/N·D, with D
what members lose against the centre on the average. So the best α is near σ·N·s/(2D), as far as members are alike.

How alike they are no formula says, so sizes are tried: the update at twice and half the expected α too, each
evaluated as one more member before anything moves. The best is made, and its size expected of the next step. Where
even the best loses more than chance explains, nothing is made. Pure functions of the config and the journal.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune import anneal
from estune.config import ESConfig

Totals = NDArray[np.float64]  # (N, B), NaN where a completion has no reward
Rewards = NDArray[np.float64]  # (B,)

LADDER = (1.0, 2.0, 0.5)  # sizes tried, in units of the expected one; of equally good ones the first is taken
_FIRST = (0.5, 8.0)  # bounds of the first α/σ, in which nothing has been tried yet
_CHANCE = 1.645  # standard errors by which a candidate may fall below the centre: one in twenty does by chance


@dataclass(frozen=True)
class Plan:
    """What a step begins with: σ of its members, and α of its update, None where the population has to tell."""

    sigma: float
    alpha: float | None


@dataclass(frozen=True)
class Control:
    """What a step found out about its size; in the journal, since the next step begins from it.

    alpha: of the update that was made, 0 when none was.
    tried, gains: sizes α that were tried, and the centre's mean reward after each less that before (None: not a number).
    predicted: what `alpha` was to gain to first order.
    drop: D, the centre's fitness less the members' mean.
    next_alpha, next_sigma: expected of the next step.
    center: rewards (B,) of the centre that this step leads to, where the next one asks the same prompts.
    """

    alpha: float
    tried: list[float]
    gains: list[float | None]
    predicted: float
    drop: float | None
    next_alpha: float | None
    next_sigma: float
    center: list[float | None] | None = None

    @property
    def gain(self) -> float:
        """What the update gained on the prompts of its own step."""
        return 0.0 if not self.alpha else (self.gains[self.tried.index(self.alpha)] or 0.0)


def plan(config: ESConfig, step: int, before: dict[str, Any] | None) -> Plan:
    """Of `step`, after one whose control was `before` (None: there was none)."""
    if config.learning_rate != "auto":
        return Plan(anneal.sigma(config, step), anneal.alpha(config, step))
    return Plan(before["next_sigma"], before["next_alpha"]) if before else Plan(config.sigma, None)


def sizes(now: Plan, totals: Totals, center: Rewards) -> list[float]:
    """Sizes α to try, the expected one first; `totals` (N, B) are the members' rewards, `center` (B,) those of θ."""
    expected = now.alpha
    if expected is None:
        fitness = _present(_means(totals))
        drop = _mean(center) - float(fitness.mean())
        best = fitness.size * float(fitness.std()) / (4 * drop) if drop > 0 else math.inf  # half of the best, for a start
        expected = now.sigma * min(max(best, _FIRST[0]), _FIRST[1])
    return [expected * rung for rung in LADDER]


def judged(
    config: ESConfig, now: Plan, totals: Totals, shaped: Rewards, center: Rewards, tried: Sequence[float], candidates: Sequence[Rewards]
) -> tuple[Control, int | None]:
    """What was learned, and which of `tried` is to be made (None: none of them).

    Args:
        totals: of the population, (N, B).
        shaped: R̃ (N,), 0 for members that are left out.
        center, candidates: rewards (B,) of θ, and of θ after each size that was tried.
    """
    fitness = _means(totals)
    there = ~np.isnan(fitness)
    drop = _mean(center) - _mean(fitness)
    slope = _mean(shaped[there] * fitness[there]) / now.sigma
    gains = [_gain(candidate, center) for candidate in candidates]
    best = max(range(len(gains)), key=lambda i: (-math.inf if math.isnan(gains[i]) else gains[i], -i), default=None)
    taken = best if best is not None and _bearable(candidates[best], center) else None
    alpha = tried[taken] if taken is not None else 0.0
    control = Control(
        alpha=alpha,
        tried=list(tried),
        gains=[None if math.isnan(gain) else gain for gain in gains],
        predicted=alpha * slope if alpha else 0.0,
        drop=None if math.isnan(drop) else drop,
        next_alpha=_next_alpha(now, tried, alpha),
        next_sigma=_next_sigma(config, now, fitness[there], drop),
    )
    return control, taken


def recorded(control: Control, center: Rewards | None) -> dict[str, Any]:
    """The control as the journal has it; `center` are the rewards of the centre, where the next step asks the same prompts."""
    values = None if center is None else [None if math.isnan(value) else float(value) for value in center]
    return {name: value for name, value in (asdict(control) | {"center": values}).items() if value is not None}


def known_center(before: dict[str, Any] | None) -> Rewards | None:
    """Rewards (B,) of the centre, as the step before left them."""
    values = (before or {}).get("center")
    return None if values is None else np.array([math.nan if value is None else value for value in values])


def _means(totals: Totals) -> Rewards:
    """The mean reward of each member (N,), NaN for one without any."""
    return np.array([_mean(row) for row in totals])


def _mean(rewards: Rewards) -> float:
    there = _present(rewards)
    return math.fsum(there) / there.size if there.size else math.nan


def _present(rewards: Rewards) -> Rewards:
    return rewards[~np.isnan(rewards)]  # type: ignore[no-any-return]


def _gain(candidate: Rewards, center: Rewards) -> float:
    """The mean over prompts of what they earn more, where both earned something."""
    return _mean(candidate - center)


def _bearable(candidate: Rewards, center: Rewards) -> bool:
    """Whether the candidate gains, or loses no more than prompts that differ by chance would make it lose."""
    differences = _present(candidate - center)
    if not differences.size:
        return False
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size) if differences.size > 1 else 0.0
    return _mean(differences) >= -_CHANCE * error


def _next_alpha(now: Plan, tried: Sequence[float], alpha: float) -> float | None:
    if not tried:
        return now.alpha
    return alpha or min(tried) / 2


def _next_sigma(config: ESConfig, now: Plan, fitness: Rewards, drop: float) -> float:
    """σ follows the spread: members that tie teach nothing, and where nearly all lose much, the centre is out of their sight."""
    if fitness.size < 2 or fitness.max() == fitness.min():
        factor = 2.0 if not drop > 0 else 0.5
    else:
        spread = float(fitness.std())
        factor = 0.8 if drop > 2 * spread else 1.0
    return min(max(now.sigma * factor, config.sigma / 16), config.sigma * 16)
