"""An update of θ: its inputs, its metrics, and its line in the journal."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from estune.common.types import Row
from estune.monitor.metrics import as_json, size_metrics, step_metrics, tokens_generated
from estune.run.distance import distance, travelled
from estune.run.mixture import Mixture
from estune.run.step_evaluation import StepEvaluation
from estune.strategy.search import SizeSearch
from estune.strategy.shaping import Fitness, Rewards
from estune.strategy.step_size import StepSize
from estune.theta.journal import Step


@dataclass(frozen=True)
class Update:
    """An update that was applied to θ, and what it was computed from.

    coefficients: cₙ, one per seed; empty if θ did not move.
    rewards: (N, B); fitness: (N,).
    decay: θ first moved back towards θ₀ by this fraction of its distance.
    seconds: the time that the update took.
    """

    step: int
    seeds: list[int]
    coefficients: list[float]
    rows: list[Row]
    rewards: Rewards
    fitness: Fitness
    size: StepSize
    search: SizeSearch
    decay: float
    seconds: float

    def metrics(self, before: Sequence[Step], evaluation: StepEvaluation) -> dict[str, Any]:
        """Return the step's metrics; `before` has the earlier steps' lines in the journal."""
        scored = evaluation.results
        population = len(self.fitness)
        tokens = tokens_generated(scored)
        earlier = before[-1].notes["metrics"].get("num_tokens", 0) if before else 0
        return {
            **step_metrics(scored[:population], scored[population:]),
            "learning_rate": self.search.alpha,
            "es/sigma": self.size.sigma,
            "num_tokens": earlier + tokens,
            "es/distance": distance(travelled(before), self.coefficients, self.decay),
            **size_metrics(self.search.learned, self.search.new_reference),
            "es/tokens_per_second": tokens / max(evaluation.seconds, 1e-9),  # of all workers
            "es/update_seconds": self.seconds,
            "step_time": time.perf_counter() - evaluation.started,
        }

    def line(
        self,
        noise: Literal["iid", "correlated"],
        metrics: dict[str, Any],
        digest: str | None,
        mixture: Mixture | None,
        *,
        same_prompts: bool,
    ) -> Step:
        """Return the journal's line; `same_prompts`: whether the next step has the same prompts."""
        return Step(
            self.step,
            self.seeds,
            self.coefficients,
            # `rewards` is the journal's older name of fitness.
            rewards=[None if math.isnan(value) else float(value) for value in self.fitness],
            sigma=self.size.sigma,
            noise=noise,
            decay=self.decay or None,
            task_rewards=mixture.earned(self.rows, self.rewards) if mixture else None,
            digest=digest,
            control=self.search.record(same_prompts=same_prompts),
            notes={"metrics": as_json(metrics)},
        )
