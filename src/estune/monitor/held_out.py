"""Evaluate θ itself on held-out prompts: completions, rewards, and metrics named `eval_…`."""

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
    prefixed,
    reward_metrics,
)
from estune.rewards.call import Failure
from estune.rewards.scoring import RewardFunctions, Scores
from estune.workers.base import Evaluator


@dataclass(frozen=True)
class HeldOut:
    """An evaluation on held-out prompts: one record and completion per row, or n when sampled.

    metrics: named `eval_…`.
    failures: reward function → completion → what went wrong.
    overran: completions that hit a grader's own time limit.
    """

    metrics: dict[str, Any]
    records: list[dict[str, Any]]
    completions: list[Completion] = field(default_factory=list)
    failures: dict[str, dict[int, Failure]] = field(default_factory=dict)
    overran: int = 0


def held_out_scores(
    workers: Evaluator,
    reward_functions: RewardFunctions,
    rows: Sequence[Row],
    config: ESConfig,
    version: int,
    state: Any,
    sampling: Sampling | None = None,
    *,
    first: bool = False,
) -> HeldOut:
    """Let θ of `version` complete all prompts, greedily or by `sampling`, and score the results.

    Raises:
        RewardError: a reward function failed, and the config does not tolerate that; the `first`
            batch of a run tolerates no failure.
    """
    started = time.perf_counter()
    completions = complete(workers, rows, config, version, sampling)
    rows = [row for row in rows for _ in range(sampling.n if sampling else 1)]
    if all(completion.finite for completion in completions):
        scores = reward_functions.score(opened(rows), completions, state, first=first)
    else:
        scores = reward_functions.none(len(rows))
    own = {
        "reward": scores.fitness,
        **reward_metrics([scores]),
        **failure_metrics([scores]),
        **completion_metrics([Tally.of(completions)]),
        "runtime": time.perf_counter() - started,
    }
    metrics = own | logged_metrics([scores]) | own  # a reward function cannot replace the run's own
    return HeldOut(
        prefixed(as_json(metrics), "eval_"),
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
    """The completions of θ itself: one per row, or with `sampling` n per row, row after row."""
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
    """One record per completion: prompt, completion, reward, the row's columns, logged extras.

    Images are left out.
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
    return shown | columns | extra | shown  # a column or extra cannot replace these three
