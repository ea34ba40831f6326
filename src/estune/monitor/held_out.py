"""The centre on held-out prompts: what it answered, greedily or drawn, and figures of it under `eval_…`."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """An evaluation: `metrics` with the prefix eval_, and one record and one completion a held-out row, or n of each if drawn.

    failures: reward function's name → completion → what went wrong.
    overran: completions at which a grader met its own time limit.
    """

    metrics: dict[str, Any]
    records: list[dict[str, Any]]
    completions: list[Completion] = field(default_factory=list)
    failures: dict[str, dict[int, Failure]] = field(default_factory=dict)
    overran: int = 0


def evaluate(
    workers: Evaluator,
    rewards: RewardFunctions,
    rows: Sequence[Row],
    config: ESConfig,
    version: int,
    state: Any,
    sampling: Sampling | None = None,
    *,
    first: bool = False,
) -> HeldOut:
    """Let θ itself answer all of `rows`, greedily or as `sampling` says, and score it.

    Raises:
        RewardError: a function failed, where that is not borne; in a run's `first` batch it is not.
    """
    started = time.perf_counter()
    completions = answers(workers, rows, config, version, sampling)
    rows = [row for row in rows for _ in range(sampling.n if sampling else 1)]
    finite = all(completion.finite for completion in completions)
    scores = (
        rewards.score(rows, completions, state, first=first) if finite else rewards.none(len(rows))
    )
    fitness = None if math.isnan(scores.fitness) else scores.fitness
    own = (
        {"reward": fitness}
        | reward_metrics([scores])
        | failure_metrics([scores])
        | completion_metrics([Tally.of(completions)])
    )
    own["runtime"] = time.perf_counter() - started
    metrics = own | logged_metrics([scores]) | own  # the run's own come first, and win
    return HeldOut(
        prefixed(as_json(metrics), "eval_"),
        records(rows, completions, scores),
        completions,
        scores.failures,
        scores.overran,
    )


def answers(
    workers: Evaluator,
    rows: Sequence[Row],
    config: ESConfig,
    version: int,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """What θ itself answers to `rows`: one each, or with `sampling` n of the first row, then of the next."""
    prompts = [row["prompt"] for row in rows]
    found = workers.evaluate(
        [Unperturbed(version)],
        prompts,
        max_completion_length=config.max_completion_length,
        sampling=sampling,
    )
    return next(filter(None, found)).completions


def records(
    rows: Sequence[Row], completions: Sequence[Completion], scores: Scores
) -> list[dict[str, Any]]:
    """One record a row for tables and files: prompt, completion, reward, the row's columns, what functions logged."""
    listed = []
    for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        reward = None if math.isnan(scores.total[i]) else float(scores.total[i])
        columns = {name: value for name, value in row.items() if name != "prompt"}
        extra = {name: values[i] for name, values in scores.extra.items() if i < len(values)}
        shown = {
            "prompt": prompt_text(row["prompt"]),
            "completion": completion.text,
            "reward": reward,
        }
        listed.append(shown | columns | extra | shown)  # these three come first, and win
    return listed
