"""Evaluate θ itself, without noise, on given rows: its completions, their rewards, and metrics."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from estune.common.images import COLUMNS, holds_images, opened
from estune.common.types import Completion, Row, Sampling, Unperturbed
from estune.config import ESConfig
from estune.monitor.console import prompt_text
from estune.monitor.metrics import (
    Tally,
    as_json,
    completion_metrics,
    failure_metrics,
    logged_metrics,
    reward_metrics,
)
from estune.rewards.call import Failure
from estune.rewards.scoring import RewardFunctions, Scores
from estune.workers.base import Evaluator


@dataclass(frozen=True)
class ThetaEvaluation:
    """What θ did on some rows. Each row has one completion, or n if they were sampled.

    records: one per completion, for people and files.
    failures: reward function → index of the completion → why there is no reward.
    overran: how many completions hit a grader's own time limit.
    """

    metrics: dict[str, Any]
    records: list[dict[str, Any]]
    completions: list[Completion] = field(default_factory=list)
    failures: dict[str, dict[int, Failure]] = field(default_factory=dict)
    overran: int = 0

    @property
    def eval_metrics(self) -> dict[str, Any]:
        """The metrics under the names that a run logs: `eval_reward` and so on."""
        return {f"eval_{name}": value for name, value in self.metrics.items()}


def evaluate_theta(
    workers: Evaluator,
    reward_functions: RewardFunctions,
    rows: Sequence[Row],
    config: ESConfig,
    version: int,
    state: Any,
    sampling: Sampling | None = None,
    *,
    first: bool = False,
) -> ThetaEvaluation:
    """Generate completions of `rows` with θ, and score them.

    Args:
        version: how many updates θ has had.
        state: the `trainer_state` that reward functions get.
        sampling: how to sample completions; without it they are greedy.
        first: whether this is the run's first batch, in which no reward function may fail.

    Raises:
        RewardError: a reward function failed, and `first` or the config does not allow that.
    """
    started = time.perf_counter()
    completions = complete(workers, rows, config, version, sampling)
    rows = [row for row in rows for _ in range(sampling.n if sampling else 1)]
    if all(completion.finite for completion in completions):
        scores = reward_functions.score(opened(rows), completions, state, first=first)
    else:
        scores = reward_functions.none(len(rows))
    own = {
        "reward": scores.mean_reward,
        **reward_metrics([scores]),
        **failure_metrics([scores]),
        **completion_metrics([Tally.of(completions)]),
        "runtime": time.perf_counter() - started,
    }
    # `own` comes first for the order, and last so that no reward function replaces its values.
    metrics = own | logged_metrics([scores]) | own
    return ThetaEvaluation(
        as_json(metrics),
        records(rows, completions, scores),
        completions,
        scores.failures,
        scores.overran,
    )


def complete(
    workers: Evaluator,
    rows: Sequence[Row],
    config: ESConfig,
    version: int,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """Return the completions of θ: one per row; with `sampling`, n of the first row, and so on."""
    evaluations = workers.evaluate(
        [Unperturbed(version)],
        [row["prompt"] for row in rows],
        max_completion_length=config.max_completion_length,
        sampling=sampling,
    )
    return next(filter(None, evaluations)).completions


def records(
    rows: Sequence[Row], completions: Sequence[Completion], scores: Scores
) -> list[dict[str, Any]]:
    """Return one record per completion.

    It holds the prompt, the completion, the reward, the row's other columns except images, and what
    reward functions passed to `log_extra`.
    """
    return [
        _record(row, completion, scores, index)
        for index, (row, completion) in enumerate(zip(rows, completions, strict=True))
    ]


def _record(row: Row, completion: Completion, scores: Scores, index: int) -> dict[str, Any]:
    total = float(scores.total[index])
    shown = {
        "prompt": prompt_text(row["prompt"]),
        "completion": completion.text,
        "reward": None if math.isnan(total) else total,
    }
    left_out = ("prompt", *COLUMNS) if holds_images(row) else ("prompt",)
    columns = {name: value for name, value in row.items() if name not in left_out}
    extra = {name: values[index] for name, values in scores.extra.items() if index < len(values)}
    # `shown` comes first for the order, and last so that no column or extra replaces its values.
    return shown | columns | extra | shown
