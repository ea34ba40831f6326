"""The metrics of a step. They have TRL's names where TRL has them; the others start with `es/`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import known, mean, scaled
from estune.common.types import Completion
from estune.monitor.expert_load import ExpertLoad, expert_metrics
from estune.rewards.call import Failure
from estune.rewards.scoring import Scores
from estune.strategy.shaping import Fitness, PromptRewards
from estune.strategy.step_size import LearnedSize

Metrics = dict[str, float | int | None]

_HASH = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64
)  # random odd numbers; the hash of a 4-gram is the sum of its tokens times these


@dataclass(frozen=True)
class Tally:
    """What is counted in a variant's completions; they themselves would take too much memory."""

    lengths: NDArray[np.int32]  # (B,), in tokens
    clipped: int
    empty: int
    repetition: float  # the sum over completions of their `repetition`
    distinct: int

    @classmethod
    def of(cls, completions: Sequence[Completion]) -> "Tally":
        return cls(
            lengths=np.array([len(completion.ids) for completion in completions], np.int32),
            clipped=sum(completion.clipped for completion in completions),
            empty=sum(not completion.text.strip() for completion in completions),
            repetition=math.fsum(repetition(completion.ids) for completion in completions),
            distinct=len({completion.text for completion in completions}),
        )


@dataclass(frozen=True)
class Scored:
    """What is kept of a variant after it was evaluated and scored.

    finite: False if the model computed NaN or infinity; the variant is then left out.
    experts: the load of its experts, if it is a mixture of them and the engine counts.
    """

    scores: Scores
    tally: Tally
    load_seconds: float
    generate_seconds: float
    finite: bool
    experts: ExpertLoad | None = None

    @property
    def rewards(self) -> PromptRewards:
        """The reward for each prompt, (B,); NaN where there is none."""
        return self.scores.total


def step_metrics(members: Sequence[Scored], others: Sequence[Scored]) -> dict[str, Any]:
    """Return the metrics of a step.

    Args:
        others: what else was evaluated in the step: θ itself and candidates. Only time and failed
            rewards include them.
    """
    everyone = [*members, *others]
    scores = [member.scores for member in members]
    own = {
        **fitness_metrics(np.array([score.mean_reward for score in scores])),
        **reward_metrics(scores),
        **failure_metrics([one.scores for one in everyone]),
        "es/members_not_finite": sum(not member.finite for member in members),
        **completion_metrics([member.tally for member in members]),
        **expert_metrics([member.experts for member in members if member.finite]),
        "es/generate_seconds": sum(one.generate_seconds for one in everyone),
        "es/load_seconds": sum(one.load_seconds for one in everyone),
    }
    # `own` comes first for the order, and last so that no reward function replaces its values.
    return own | logged_metrics(scores) | own


def tokens_generated(evaluated: Sequence[Scored]) -> int:
    return int(sum(one.tally.lengths.sum() for one in evaluated))


def size_metrics(learned: LearnedSize | None, reference: PromptRewards | None) -> dict[str, Any]:
    """Return what `learning_rate: auto` found; `reference` holds the rewards of the new θ, (B,)."""
    if learned is None or reference is None:
        return {}
    return {
        "es/gain": learned.gain,
        "es/gain_predicted": learned.predicted,
        "es/center_reward": mean(known(reference)),
        "es/drop": learned.drop,
        "es/refused": int(bool(learned.tried) and not learned.alpha),
    }


def repetition(ids: Sequence[int]) -> float:
    """Return the fraction of a completion's 4-grams that repeat an earlier one.

    It is 0 for fewer than 4 tokens.
    """
    count = len(ids) - len(_HASH) + 1
    if count < 1:
        return 0.0
    tokens = np.asarray(ids, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for offset, factor in enumerate(_HASH):
        hashes += tokens[offset : offset + count] * factor  # modulo 2⁶⁴
    return 1 - np.unique(hashes).size / count


def completion_metrics(tallies: Sequence[Tally]) -> Metrics:
    """Return the lengths in tokens, and the fractions clipped, empty, repetitive and distinct.

    The fraction of distinct completions is taken in each tally and then averaged; all else is a
    mean over completions.
    """
    lengths = np.concatenate([tally.lengths for tally in tallies])
    distinct = math.fsum(tally.distinct / tally.lengths.size for tally in tallies)
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": int(lengths.min()),
        "completions/max_length": int(lengths.max()),
        "completions/clipped_ratio": sum(tally.clipped for tally in tallies) / lengths.size,
        "completions/empty_ratio": sum(tally.empty for tally in tallies) / lengths.size,
        "completions/repetition": math.fsum(tally.repetition for tally in tallies) / lengths.size,
        "completions/distinct": distinct / len(tallies),
    }


def reward_metrics(scores: Sequence[Scores]) -> Metrics:
    """Return the mean and standard deviation of each reward function over all completions."""
    metrics: Metrics = {}
    for name in scores[0].by_function:
        values = known(np.concatenate([score.by_function[name] for score in scores]))
        metrics[f"rewards/{name}/mean"] = scaled(np.mean, values) if values.size else None
        metrics[f"rewards/{name}/std"] = scaled(np.std, values) if values.size else None
    return metrics


def logged_metrics(scores: Sequence[Scores]) -> Metrics:
    """Return the means of what reward functions passed to `log_metric`.

    A mean is None if one of its values is not finite.
    """
    metrics: Metrics = {}
    for name in sorted({name for score in scores for name in score.metrics}):
        values = [score.metrics[name] for score in scores if name in score.metrics]
        metrics[name] = scaled(np.mean, values) if all(map(math.isfinite, values)) else None
    return metrics


def failure_metrics(scores: Sequence[Scores]) -> Metrics:
    """Return how many rewards were lost because a function failed, and the number of timeouts.

    A timeout is a reward lost to `reward_timeout`, or a completion that hit a grader's own time
    limit. The latter gets the lowest reward, so it counts as a timeout but not as an error.
    """
    timed_out = sum(failure.timed_out for failure in _failures(scores))
    overran = sum(score.overran for score in scores)
    return {"es/reward_errors": lost_rewards(scores), "es/reward_timeouts": timed_out + overran}


def lost_rewards(scores: Sequence[Scores]) -> int:
    """Return how many rewards were lost because a function failed."""
    return len(_failures(scores))


def _failures(scores: Sequence[Scores]) -> list[Failure]:
    return [
        failure
        for score in scores
        for by_completion in score.failures.values()
        for failure in by_completion.values()
    ]


def fitness_metrics(fitness: Fitness) -> Metrics:
    """Return the mean, deviation and extremes of fitness over the members that have one.

    If no member has one, these are None, and all members are left out.
    """
    present = known(fitness)
    if not present.size:
        names = ("reward", "reward_std", "es/reward_best", "es/reward_worst")
        without = {"es/members_left_out": int(fitness.size), "frac_reward_zero_std": 1.0}
        return dict.fromkeys(names, None) | without
    return {
        "reward": scaled(np.mean, present),
        "reward_std": scaled(np.std, present),
        "es/reward_best": float(present.max()),
        "es/reward_worst": float(present.min()),
        "es/members_left_out": int(fitness.size - present.size),
        "frac_reward_zero_std": float(present.max() == present.min()),
    }


def as_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return `metrics` with None for NaN and infinity, which JSON does not have."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in metrics.items()}
