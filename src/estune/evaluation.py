"""The centre on held-out prompts: figures under `eval_…`, and what it answered."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from estune.config import ESConfig
from estune.console import prompt_text
from estune.member import Completion, Member
from estune.metrics import Tally, completion_metrics, failure_metrics, prefixed, reward_metrics
from estune.rewards.scoring import Rewards, Row, Scores
from estune.workers.base import Workers


@dataclass(frozen=True)
class Held:
    """An evaluation: `metrics` with the prefix eval_, and one record a held-out row."""

    metrics: dict[str, Any]
    records: list[dict[str, Any]]


def evaluate(workers: Workers, rewards: Rewards, rows: Sequence[Row], config: ESConfig, version: int, state: Any) -> Held:
    """Let θ itself, the member with σ = 0, answer all of `rows`, and score it. Before the first step rewards must not fail."""
    started = time.perf_counter()
    member = Member(0, 1, 0.0, config.noise, version)
    prompts = [row["prompt"] for row in rows]
    done = next(filter(None, workers.evaluate([member], prompts, max_completion_length=config.max_completion_length)))
    scores = rewards.score(rows, done.completions, state, first=version == 0)
    fitness = None if math.isnan(scores.fitness) else scores.fitness
    metrics = {"reward": fitness} | reward_metrics([scores]) | failure_metrics([scores]) | completion_metrics([Tally.of(done.completions)])
    metrics["runtime"] = time.perf_counter() - started
    return Held(prefixed(metrics, "eval_"), records(rows, done.completions, scores))


def records(rows: Sequence[Row], completions: Sequence[Completion], scores: Scores) -> list[dict[str, Any]]:
    """One record a row for tables and files: prompt, completion, reward, the row's columns, what functions logged."""
    listed = []
    for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        reward = None if math.isnan(scores.total[i]) else float(scores.total[i])
        columns = {name: value for name, value in row.items() if name != "prompt"}
        extra = {name: values[i] for name, values in scores.extra.items() if i < len(values)}
        shown = {"prompt": prompt_text(row["prompt"]), "completion": completion.text, "reward": reward}
        listed.append(shown | columns | extra)
    return listed
