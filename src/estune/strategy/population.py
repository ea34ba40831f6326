"""The members of one step on their way from answers to fitness, while engines are at the next ones."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from estune.common.types import Row
from estune.errors import clean
from estune.monitor.console import prompt_text
from estune.monitor.held_out import records
from estune.monitor.metrics import Tally
from estune.monitor.timeline import Timeline
from estune.rewards.call import Failure
from estune.rewards.scoring import Pending, RewardFunctions, Scores
from estune.workers.base import Evaluation

_MANY = 256  # members whose completions may wait for their rewards before engines have to wait too


@dataclass(frozen=True)
class Scored:
    """What is kept of a member: all completions of a large population would not fit into memory."""

    scores: Scores
    tally: Tally
    load_seconds: float
    generate_seconds: float
    finite: bool  # False where it computed NaN or infinity, and is left out


@dataclass(frozen=True)
class Mishap:
    """The first reward of a step that was lost."""

    function: str
    failure: Failure
    prompt: str
    completion: str

    def __str__(self) -> str:
        return clean(
            f"reward function {self.function} {self.failure.reason}\n\nprompt:\n{self.prompt}\n\ncompletion:\n{self.completion}\n\n"
            f"{self.failure.details}"
        )


class Population:
    """Members of one step, which answer `rows`. `best` are the answers of the best one so far of the first `best_of`."""

    def __init__(
        self,
        rewards: RewardFunctions,
        rows: Sequence[Row],
        state: Any,
        timeline: Timeline,
        *,
        best_of: int,
    ) -> None:
        self._rewards, self._rows, self._state, self._best_of = rewards, rows, state, best_of
        self._timeline = timeline
        self._waiting: dict[int, tuple[Pending, Evaluation]] = {}
        self._done: dict[int, Scored] = {}
        self._best = -math.inf
        self.best: list[dict[str, Any]] = []
        self.mishap: Mishap | None = None

    @property
    def done(self) -> int:
        """Members that are scored."""
        return len(self._done)

    @property
    def under_way(self) -> int:
        """Members that are evaluated, but not yet scored."""
        return len(self._waiting)

    def add(self, evaluation: Evaluation, *, first: bool) -> None:
        """Begin to score a member, unless it computed NaN or infinity, which leaves it out.

        Of the `first` member of a run the scores are waited for, since a failure ends it.

        Raises:
            RewardError: a reward function failed, where that is not borne.
        """
        if not all(completion.finite for completion in evaluation.completions):
            return self._take(self._rewards.none(len(self._rows)), evaluation)
        asked = time.perf_counter()
        pending = self._rewards.submit(self._rows, evaluation.completions, self._state, first=first)
        pending.on_done(lambda: self._timeline.scored(asked))
        self._waiting[evaluation.index] = pending, evaluation
        if first:
            pending.wait()
        while self.collect() and self.under_way >= _MANY:
            time.sleep(0.05)

    def wait(self, seconds: float) -> None:
        """Wait for scores, `seconds` at most. Raises RewardError as `add` does."""
        next(iter(self._waiting.values()))[0].wait(seconds)
        self.collect()

    def collect(self) -> bool:
        """Take in the scores that are there; whether some are still under way."""
        for index, (pending, evaluation) in list(self._waiting.items()):
            if pending.done():
                self._take(pending.result(), evaluation)
                del self._waiting[index]
        return bool(self._waiting)

    def settled(self) -> list[Scored]:
        """All members in the population's order, with what lost rewards count."""
        members = [self._done[index] for index in sorted(self._done)]
        scores = self._rewards.settle([member.scores for member in members])
        return [
            replace(member, scores=settled) for member, settled in zip(members, scores, strict=True)
        ]

    def _take(self, scores: Scores, evaluation: Evaluation) -> None:
        if evaluation.index < self._best_of and scores.fitness > self._best:
            self._best, self.best = (
                scores.fitness,
                records(self._rows, evaluation.completions, scores),
            )
        if scores.failures and self.mishap is None:
            name, failures = next(iter(scores.failures.items()))
            index, failure = next(iter(failures.items()))
            prompt = prompt_text(self._rows[index].get("prompt") or "")
            self.mishap = Mishap(name, failure, prompt, evaluation.completions[index].text)
        scores.extra.clear()
        tally = Tally.of(evaluation.completions)
        finite = all(completion.finite for completion in evaluation.completions)
        self._done[evaluation.index] = Scored(
            scores, tally, evaluation.load_seconds, evaluation.generate_seconds, finite
        )
