"""The figures of a step, under the names that TRL's users chart already; estune's own begin with `es/`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import scaled
from estune.common.types import Completion
from estune.rewards.scoring import Scores

Metrics = dict[str, float | int | None]

_MIX = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64
)  # odd, of random bits


@dataclass(frozen=True)
class Tally:
    """What is kept of completions once they are scored: all of a large population's would not fit into memory."""

    lengths: NDArray[np.int32]  # (B,), tokens
    clipped: int
    empty: int
    repetition: float  # summed over the completions
    distinct: int

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "Tally":
        lengths = np.array([len(completion.ids) for completion in completions], np.int32)
        clipped = sum(completion.clipped for completion in completions)
        empty = sum(not completion.text.strip() for completion in completions)
        repeated = math.fsum(repetition(completion.ids) for completion in completions)
        return cls(
            lengths, clipped, empty, repeated, len({completion.text for completion in completions})
        )


def repetition(ids: Sequence[int]) -> float:
    """The part of a completion's 4-grams of tokens that stood in it before: 1 − different ÷ all; 0 below 4 tokens."""
    count = len(ids) - len(_MIX) + 1
    if count < 1:
        return 0.0
    tokens = np.asarray(ids, np.uint64)
    grams = sum(
        (tokens[at : at + count] * factor for at, factor in enumerate(_MIX)),
        np.zeros(count, np.uint64),
    )  # modulo 2⁶⁴
    return 1 - np.unique(grams).size / count


def completion_metrics(tallies: Sequence[Tally]) -> Metrics:
    """Lengths in tokens, and the fractions that the budget cut off, that are empty, that repeat themselves and that differ.

    `distinct` is a mean over `tallies`, the others over completions.
    """
    lengths = np.concatenate([tally.lengths for tally in tallies])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": int(lengths.min()),
        "completions/max_length": int(lengths.max()),
        "completions/clipped_ratio": sum(tally.clipped for tally in tallies) / lengths.size,
        "completions/empty_ratio": sum(tally.empty for tally in tallies) / lengths.size,
        "completions/repetition": math.fsum(tally.repetition for tally in tallies) / lengths.size,
        "completions/distinct": math.fsum(tally.distinct / tally.lengths.size for tally in tallies)
        / len(tallies),
    }


def reward_metrics(scores: Sequence[Scores]) -> Metrics:
    """Mean and spread of each reward function over all completions."""
    metrics: Metrics = {}
    for name in scores[0].by_function:
        values = np.concatenate([score.by_function[name] for score in scores])
        values = values[~np.isnan(values)]
        metrics[f"rewards/{name}/mean"] = scaled(np.mean, values) if values.size else None
        metrics[f"rewards/{name}/std"] = scaled(np.std, values) if values.size else None
    return metrics


def logged_metrics(scores: Sequence[Scores]) -> Metrics:
    """The mean of what reward functions logged; None where that is no number. A name of the run's own is the run's."""
    metrics: Metrics = {}
    for name in sorted({name for score in scores for name in score.metrics}):
        values = [score.metrics[name] for score in scores if name in score.metrics]
        metrics[name] = scaled(np.mean, values) if all(map(math.isfinite, values)) else None
    return metrics


def as_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics` with None for NaN and infinity, which JSON cannot express."""
    infinite = {
        name
        for name, value in metrics.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    return {name: None if name in infinite else value for name, value in metrics.items()}


def failure_metrics(scores: Sequence[Scores]) -> Metrics:
    """How many rewards were lost because a function failed, and how many answers took too long.

    Timeouts are of two kinds: rewards that were lost to `reward_timeout`, and grades that are a grader's lowest because the
    answer met the grader's own time limit. The latter are grades like others, so they are no errors.
    """
    failures = [
        failure
        for score in scores
        for found in score.failures.values()
        for failure in found.values()
    ]
    timeouts = sum(failure.timed_out for failure in failures) + sum(
        score.overran for score in scores
    )
    return {"es/reward_errors": len(failures), "es/reward_timeouts": timeouts}


def fitness_metrics(fitness: np.ndarray[Any, np.dtype[np.float64]]) -> Metrics:
    """`reward` is the mean over members, `reward_std` their standard deviation."""
    there = fitness[~np.isnan(fitness)]
    if not there.size:
        return {
            "reward": None,
            "reward_std": None,
            "es/reward_best": None,
            "es/reward_worst": None,
            "frac_reward_zero_std": 1.0,
        }
    return {
        "reward": scaled(np.mean, there),
        "reward_std": scaled(np.std, there),
        "es/reward_best": float(there.max()),
        "es/reward_worst": float(there.min()),
        "es/members_left_out": int(fitness.size - there.size),
        "frac_reward_zero_std": float(there.max() == there.min()),
    }


def prefixed(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The metrics with `prefix` before each name."""
    return {prefix + name: value for name, value in metrics.items()}
