"""Evaluate the members of one step: generate their completions and score them.

Engines already generate for the next members while reward functions score earlier ones.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from estune.common.images import opened
from estune.common.types import Row, Variant
from estune.config import ESConfig
from estune.errors import clean
from estune.monitor.console import prompt_text
from estune.monitor.expert_load import ExpertLoad
from estune.monitor.metrics import Scored, Tally
from estune.monitor.theta_evaluation import records
from estune.monitor.timeline import Timeline
from estune.rewards.call import Failure
from estune.rewards.scoring import Pending, RewardFunctions, Scores
from estune.workers.base import Evaluation, Workers

_MOST_WAITING = 256  # variants that may wait for rewards; with that many, engines wait too
_TICK = 0.1  # seconds between two calls of `tick` while only rewards are awaited


@dataclass(frozen=True)
class LostReward:
    """The first reward of a step that was lost because a reward function failed."""

    function: str
    failure: Failure
    prompt: str
    completion: str

    @property
    def summary(self) -> str:
        return f"{self.function} {self.failure.reason}"

    def __str__(self) -> str:
        return clean(
            f"reward function {self.summary}\n\nprompt:\n{self.prompt}\n\n"
            f"completion:\n{self.completion}\n\n{self.failure.details}"
        )


class StepEvaluation:
    """Evaluates variants of θ on the rows of one step: call it to get their rewards.

    Args:
        tick: called often while results are awaited; it may raise an error to end the step.
        first_step: this is the run's first step. With on_reward_error `lowest` or `raise`, a reward
            function that fails on the first variant ends the run, since that is probably a bug.
        best_of: `best` is the best of the first `best_of` variants; 0 leaves it empty.

    Attributes:
        results: the results of all variants so far, in order.
        best: the completions of the best variant, with their rewards.
        lost: the first reward that was lost, if any.
        seconds: the time spent evaluating so far.
    """

    def __init__(
        self,
        workers: Workers,
        reward_functions: RewardFunctions,
        rows: Sequence[Row],
        config: ESConfig,
        state: Any,
        timeline: Timeline,
        tick: Callable[["StepEvaluation"], None],
        *,
        first_step: bool = False,
        best_of: int = 0,
    ) -> None:
        self._workers = workers
        self._reward_functions = reward_functions
        self._rows = rows
        self._opened_rows = opened(rows)  # images are decoded once per step
        self._prompts = [row["prompt"] for row in rows]
        self._budget = config.max_completion_length
        self._state = state
        self._timeline = timeline
        self._tick = tick
        self._first_step = first_step
        self._best_of = best_of
        self._best_reward = -math.inf
        self._pending: dict[int, tuple[Pending, Evaluation]] = {}
        self._scored: dict[int, Scored] = {}
        self.started = time.perf_counter()
        self.seconds = 0.0
        self.results: list[Scored] = []
        self.best: list[dict[str, Any]] = []
        self.lost: LostReward | None = None

    def __call__(self, variants: Sequence[Variant]) -> list[Scored]:
        """Evaluate `variants`, score their completions, and return their results in order.

        Raises:
            RewardError: a reward function failed, and on_reward_error does not tolerate that.
        """
        started = time.perf_counter()
        before = self.done
        with self._timeline.span("wait"):
            self._generate(variants, before)
        with self._timeline.span("score"):
            self._await_scores()
        self._tick(self)  # a signal may have arrived with the last scores
        self.seconds += time.perf_counter() - started
        # Settled together with the earlier ones, because `lowest` is the lowest of the step.
        results = self._settled()[before:]
        self.results += results
        return results

    @property
    def done(self) -> int:
        """How many variants have been scored."""
        return len(self._scored)

    def _settled(self) -> list[Scored]:
        """Return all results so far, with lost rewards replaced as `on_reward_error` says."""
        scored = [self._scored[index] for index in sorted(self._scored)]
        settled = self._reward_functions.settle([one.scores for one in scored])
        return [replace(one, scores=scores) for one, scores in zip(scored, settled, strict=True)]

    def _generate(self, variants: Sequence[Variant], before: int) -> None:
        for evaluation in self._workers.evaluate(
            variants, self._prompts, max_completion_length=self._budget
        ):
            if evaluation is not None:
                self._timeline.work(evaluation.work, self._workers.status().requested)
                self._submit(replace(evaluation, index=before + evaluation.index))
            self._tick(self)

    def _submit(self, evaluation: Evaluation) -> None:
        """Start scoring a variant, unless its model computed NaN or infinity."""
        if not _is_finite(evaluation):
            self._take(self._reward_functions.none(len(self._rows)), evaluation)
            return
        first = self._first_step and evaluation.index == 0
        started = time.perf_counter()
        pending = self._reward_functions.submit(
            self._opened_rows, evaluation.completions, self._state, first=first
        )
        pending.on_done(lambda: self._timeline.scored(started))
        self._pending[evaluation.index] = pending, evaluation
        if first:
            pending.wait()
        self._collect()
        while len(self._pending) >= _MOST_WAITING:
            time.sleep(_TICK / 2)
            self._collect()

    def _await_scores(self) -> None:
        while self._pending:
            self._tick(self)
            pending, _ = next(iter(self._pending.values()))
            pending.wait(_TICK)
            self._collect()

    def _collect(self) -> None:
        """Take the scores that are ready."""
        for index, (pending, evaluation) in list(self._pending.items()):
            if pending.done():
                self._take(pending.result(), evaluation)
                del self._pending[index]

    def _take(self, scores: Scores, evaluation: Evaluation) -> None:
        """Keep a variant's scores, but not its completions, which would fill the memory."""
        if evaluation.index < self._best_of and scores.mean_reward > self._best_reward:
            self._best_reward = scores.mean_reward
            self.best = records(self._rows, evaluation.completions, scores)
        self.lost = self.lost or self._first_lost(scores, evaluation)
        scores.extra.clear()
        self._scored[evaluation.index] = Scored(
            scores,
            Tally.of(evaluation.completions),
            evaluation.load_seconds,
            evaluation.generate_seconds,
            _is_finite(evaluation),
            ExpertLoad.of(work.experts for work in evaluation.work),
        )

    def _first_lost(self, scores: Scores, evaluation: Evaluation) -> LostReward | None:
        for name, failures in scores.failures.items():
            index, failure = next(iter(failures.items()))
            prompt = prompt_text(self._rows[index].get("prompt") or "")
            return LostReward(name, failure, prompt, evaluation.completions[index].text)
        return None


def _is_finite(evaluation: Evaluation) -> bool:
    return all(completion.finite for completion in evaluation.completions)
