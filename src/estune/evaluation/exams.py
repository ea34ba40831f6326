"""Models on tasks: each model is loaded once, answers all tasks, and is released before the next.

results = examine("out/checkpoint-10", exams, sampling)
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.types import Row, Sampling
from estune.config import RunConfig, build
from estune.errors import RewardError
from estune.monitor.callbacks import Callbacks
from estune.monitor.theta_evaluation import ThetaEvaluation, evaluate_theta
from estune.rewards.marks import overran_line
from estune.rewards.scoring import RewardFunctions
from estune.run.model import Model
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of


@dataclass(frozen=True)
class Exam:
    """A task for a model: held-out rows, and the reward functions that score its completions."""

    name: str
    config: RunConfig
    rows: list[Row]
    rewards: RewardFunctions

    @classmethod
    def of(cls, name: str, config: RunConfig, rows: Any, reward_funcs: Any) -> "Exam":
        """Return an exam, checked as a trainer would. Raises InputError."""
        usable = rows_of(rows, name)
        rewards = RewardFunctions.of(resolve_rewards(reward_funcs), config)
        rewards.check([column for column in usable[0] if column != "prompt"])
        return cls(name, config, usable, rewards)


@dataclass(frozen=True)
class ExamResult:
    """A model's greedy completions in an exam, and `samples` drawn ones per prompt, if any."""

    model: str
    exam: Exam
    greedy: ThetaEvaluation
    drawn: ThetaEvaluation | None
    samples: int

    @property
    def evaluations(self) -> dict[str, ThetaEvaluation]:
        """The greedy and the drawn completions, by name."""
        return {"greedy": self.greedy} | ({"drawn": self.drawn} if self.drawn else {})

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Rewards of the greedy completions, (P,); NaN where no function gave a number."""
        return rewards_of(self.greedy)

    @property
    def drawn_rewards(self) -> NDArray[np.float64]:
        """Rewards of the drawn completions, (P, n); (P, 0) if none were drawn."""
        if self.drawn is None:
            return np.empty((len(self.exam.rows), 0))
        return rewards_of(self.drawn).reshape(-1, self.samples)

    def warnings(self) -> list[str]:
        """Return a line on lost rewards and one on a grader's time limit, where they occurred."""
        evaluations = self.evaluations.values()
        lines = []
        lost = [item for one in evaluations for item in one.failures.items()]
        if lost:
            name, first = lost[0]
            count = sum(len(failures) for _, failures in lost)
            why = first[min(first)].reason
            lines.append(f"{self.exam.name}: {count} rewards were lost; first: {name} {why}")
        if overran := sum(one.overran for one in evaluations):
            lines.append(f"{self.exam.name}: {overran_line(overran)}")
        return lines


def examine(model: str, exams: Sequence[Exam], sampling: Sampling | None) -> list[ExamResult]:
    """Return the model's results, in the exams' order; none in a launched process that follows.

    Exams that need different engines (because of stop strings, for example) get an engine each.

    Raises:
        RewardError: a reward function failed at every completion, or at any of them where
            `on_reward_error` is `raise`.
    """
    results: dict[str, ExamResult] = {}
    in_groups = sorted(exams, key=lambda exam: repr(_engine_config(exam)))
    for _, group in groupby(in_groups, _engine_config):
        for result in _with_one_engine(model, list(group), sampling):
            results[result.exam.name] = result
        gc.collect()  # free this engine before the next one is built
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [results[exam.name] for exam in exams if exam.name in results]


def rewards_of(evaluation: ThetaEvaluation) -> NDArray[np.float64]:
    """Return the rewards of an evaluation's completions, NaN where there is none."""
    return np.array([record["reward"] for record in evaluation.records], np.float64)


def _with_one_engine(
    name: str, exams: Sequence[Exam], sampling: Sampling | None
) -> Iterator[ExamResult]:
    config = exams[0].config
    prompts = {exam.name: [row["prompt"] for row in exam.rows] for exam in exams}
    model = Model(name, config, None, prompts)
    if not model.leads:
        model.workers.serve()
        return
    state = Callbacks(config, []).state
    version = model.theta.version
    try:
        for exam in exams:
            about = model.workers, exam.rewards, exam.rows, exam.config, version, state
            drawn = evaluate_theta(*about, sampling) if sampling else None
            greedy = evaluate_theta(*about)
            result = ExamResult(name, exam, greedy, drawn, sampling.n if sampling else 0)
            _check_scored(result)
            yield result
    finally:
        for exam in exams:
            exam.rewards.close()
        model.workers.release()


def _check_scored(result: ExamResult) -> None:
    """Raise RewardError if a function failed at all completions, which is a bug in it."""
    for evaluation in result.evaluations.values():
        for name, failures in evaluation.failures.items():
            if len(failures) == len(evaluation.records):
                why = failures[min(failures)].reason
                raise RewardError(
                    f"reward function {name} failed at all {len(failures)} completions "
                    f"of {result.model} for {result.exam.name}; first: it {why}"
                )


def _engine_config(exam: Exam) -> RunConfig:
    """Return the settings that an engine depends on."""
    of_the_task = {"task": None, "dataset_name": None, "reward_weights": None}
    return build(RunConfig, vars(exam.config) | of_the_task | {"max_completion_length": 1})
