"""The metrics of a step, under TRL's names where it has them; estune's own start with `es/`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import known, mean, scaled
from estune.common.types import Completion
from estune.rewards.call import Failure
from estune.rewards.scoring import Scores
from estune.strategy.fitness import Fitness, PromptRewards
from estune.strategy.step_size import LearnedSize

Metrics = dict[str, float | int | None]

_HASH = np.array(
    [0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64
)  # odd factors of random bits, one per token of a 4-gram


@dataclass(frozen=True)
class Tally:
    """Counts of a variant's completions, which are not kept because they would fill the memory."""

    lengths: NDArray[np.int32]  # (B,), tokens
    clipped: int
    empty: int
    repetition: float  # summed over the completions
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
    """What is kept of a variant of θ after it was evaluated.

    finite: False if its model computed NaN or infinity; it is then left out.
    """

    scores: Scores
    tally: Tally
    load_seconds: float
    generate_seconds: float
    finite: bool

    @property
    def rewards(self) -> PromptRewards:
        """Its reward for each prompt (B,), NaN where there is none."""
        return self.scores.total


def step_metrics(members: Sequence[Scored], others: Sequence[Scored]) -> dict[str, Any]:
    """Metrics of a step's evaluations: the members, and θ itself and candidates if any."""
    everyone = [*members, *others]
    scores = [member.scores for member in members]
    own = {
        **fitness_metrics(np.array([score.fitness for score in scores])),
        **reward_metrics(scores),
        **failure_metrics([one.scores for one in everyone]),
        "es/members_not_finite": sum(not member.finite for member in members),
        **completion_metrics([member.tally for member in members]),
        "es/generate_seconds": sum(one.generate_seconds for one in everyone),
        "es/load_seconds": sum(one.load_seconds for one in everyone),
    }
    return own | logged_metrics(scores) | own  # a reward function cannot replace the run's own


def tokens_generated(evaluated: Sequence[Scored]) -> int:
    return int(sum(one.tally.lengths.sum() for one in evaluated))


def size_metrics(learned: LearnedSize | None, reference: PromptRewards | None) -> dict[str, Any]:
    """What `learning_rate: auto` found; `reference` are the rewards (B,) of the new θ."""
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
    """The fraction of a completion's 4-grams of tokens that are repeats; 0 below 4 tokens."""
    count = len(ids) - len(_HASH) + 1
    if count < 1:
        return 0.0
    tokens = np.asarray(ids, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for offset, factor in enumerate(_HASH):
        hashes += tokens[offset : offset + count] * factor  # modulo 2⁶⁴
    return 1 - np.unique(hashes).size / count


def completion_metrics(tallies: Sequence[Tally]) -> Metrics:
    """Lengths in tokens, and which fractions are clipped, empty, repetitive and distinct.

    `distinct` is a mean over `tallies`, the others are means over completions.
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
    """Mean and standard deviation of each reward function over all completions."""
    metrics: Metrics = {}
    for name in scores[0].by_function:
        values = known(np.concatenate([score.by_function[name] for score in scores]))
        metrics[f"rewards/{name}/mean"] = scaled(np.mean, values) if values.size else None
        metrics[f"rewards/{name}/std"] = scaled(np.std, values) if values.size else None
    return metrics


def logged_metrics(scores: Sequence[Scores]) -> Metrics:
    """The means of what reward functions passed to `log_metric`; None if a value is not finite."""
    metrics: Metrics = {}
    for name in sorted({name for score in scores for name in score.metrics}):
        values = [score.metrics[name] for score in scores if name in score.metrics]
        metrics[name] = scaled(np.mean, values) if all(map(math.isfinite, values)) else None
    return metrics


def failure_metrics(scores: Sequence[Scores]) -> Metrics:
    """How many rewards were lost because a function failed, and how many took too long.

    Timeouts are rewards lost to `reward_timeout`, and completions that hit a grader's own time
    limit. The latter get a valid grade, the lowest, so they are no errors.
    """
    timed_out = sum(failure.timed_out for failure in _failures(scores))
    overran = sum(score.overran for score in scores)
    return {"es/reward_errors": lost_rewards(scores), "es/reward_timeouts": timed_out + overran}


def lost_rewards(scores: Sequence[Scores]) -> int:
    """How many rewards were lost because a function failed."""
    return len(_failures(scores))


def _failures(scores: Sequence[Scores]) -> list[Failure]:
    return [
        failure
        for score in scores
        for by_completion in score.failures.values()
        for failure in by_completion.values()
    ]


def fitness_metrics(fitness: Fitness) -> Metrics:
    """`reward` is the mean over members of their mean reward, `reward_std` its deviation."""
    present = known(fitness)
    if not present.size:
        names = ("reward", "reward_std", "es/reward_best", "es/reward_worst")
        return dict.fromkeys(names, None) | {"frac_reward_zero_std": 1.0}
    return {
        "reward": scaled(np.mean, present),
        "reward_std": scaled(np.std, present),
        "es/reward_best": float(present.max()),
        "es/reward_worst": float(present.min()),
        "es/members_left_out": int(fitness.size - present.size),
        "frac_reward_zero_std": float(present.max() == present.min()),
    }


def as_json(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """`metrics` with None for NaN and infinity, which JSON has no numbers for."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in metrics.items()}


def prefixed(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The metrics with `prefix` before each name."""
    return {prefix + name: value for name, value in metrics.items()}
