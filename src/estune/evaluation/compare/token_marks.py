"""When a run is evaluated and when it ends. Both depend on the tokens that it has generated.

A run is evaluated at its start, in the first step after each multiple of `eval_tokens` (a mark),
and at its end. ES and RL runs use the same code.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estune.common.durable import write_text
from estune.common.types import Row
from estune.evaluation.compare.runs import ComparisonRun
from estune.monitor.theta_evaluation import evaluate_theta
from estune.rewards.scoring import RewardFunctions
from estune.workers.base import Evaluator

Point = dict[str, Any]  # step, tokens, seconds; and SetMetrics
SetMetrics = dict[str, dict[str, float | None]]  # "train" or "held_out" → metrics
_POINTS = "points.jsonl"


@dataclass(frozen=True)
class PromptSets:
    """The sets of prompts on which a run is evaluated, and the functions that score completions."""

    sets: dict[str, list[Row]]
    rewards: RewardFunctions

    @classmethod
    def of(
        cls,
        run: ComparisonRun,
        train: Sequence[Row],
        held_out: Sequence[Row] | None,
        rewards: RewardFunctions,
    ) -> "PromptSets":
        sets = {"train": list(train[: run.eval_prompts])}
        return cls(
            sets | ({"held_out": list(held_out[: run.eval_prompts])} if held_out else {}), rewards
        )

    def examine(
        self, run: ComparisonRun, workers: Evaluator, version: int, state: Any
    ) -> SetMetrics:
        """Evaluate θ greedily on each set; return set → metrics."""
        config = run.config()
        evaluations = {
            name: evaluate_theta(
                workers, self.rewards, rows, config, version, state, first=version == 0
            )
            for name, rows in self.sets.items()
        }
        return {name: evaluation.metrics for name, evaluation in evaluations.items()}


class Curve:
    """The evaluations of a run, in points.jsonl in its folder.

    Args:
        examine: evaluates the current model.
    """

    def __init__(self, run: ComparisonRun, folder: Path, examine: Callable[[], SetMetrics]) -> None:
        self._run = run
        self._path = folder / _POINTS
        self._examine = examine
        self.points = read_points(folder)

    def begin_afresh(self) -> None:
        """Delete the points of an earlier attempt."""
        self.points = []
        self._path.unlink(missing_ok=True)

    def update(self, step: int, tokens: int, seconds: float) -> bool:
        """Evaluate if a mark was passed since the last evaluation; return whether the run ends.

        `step`, `tokens` and `seconds` say how far the run is.
        """
        ended = tokens >= self._run.tokens
        if self._due(step, tokens, ended):
            self._add(step, tokens, seconds)
        return ended

    def finish(self, step: int, tokens: int, seconds: float) -> None:
        """Evaluate the final model, unless `update` has done so."""
        if self._due(step, tokens, ended=True):
            self._add(step, tokens, seconds)

    def _add(self, step: int, tokens: int, seconds: float) -> None:
        self.points.append({"step": step, "tokens": tokens, "seconds": seconds, **self._examine()})
        write_text(self._path, "".join(json.dumps(point) + "\n" for point in self.points))
        self._show()

    def _due(self, step: int, tokens: int, ended: bool) -> bool:
        if not self.points:
            return True
        last = self.points[-1]
        passed = tokens // self._run.eval_tokens > last["tokens"] // self._run.eval_tokens
        return bool(step > last["step"] and (passed or ended))

    def _show(self) -> None:
        point = self.points[-1]
        rewards = "  ".join(
            f"{name.replace('_', ' ')} {point[name]['reward']:.4g}"
            for name in ("train", "held_out")
            if point.get(name, {}).get("reward") is not None
        )
        print(f"evaluated at {point['tokens']} tokens: {rewards}", flush=True)


def read_points(folder: Path) -> list[Point]:
    """Return the points in a run's folder; none if there is no file."""
    path = folder / _POINTS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
