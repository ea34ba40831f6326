"""Evaluate a model on tasks, for which it is loaded only once.

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
from estune.tasks.image_rows import check_shown
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of


@dataclass(frozen=True)
class Exam:
    """A task on which models are evaluated: held-out rows and reward functions."""

    name: str
    config: RunConfig
    rows: list[Row]
    rewards: RewardFunctions

    @classmethod
    def of(cls, name: str, config: RunConfig, rows: Any, reward_funcs: Any) -> "Exam":
        """Return an exam, with the same checks of rows and rewards as in training.

        Raises:
            InputError: a row or a reward function cannot be used.
        """
        usable = rows_of(rows, name)
        rewards = RewardFunctions.of(resolve_rewards(reward_funcs), config)
        rewards.check([column for column in usable[0] if column != "prompt"])
        return cls(name, config, usable, rewards)


@dataclass(frozen=True)
class ExamResult:
    """What a model did in an exam: `greedy` completions, and `samples` sampled ones per prompt.

    If none were sampled, `drawn` is None and `samples` is 0.
    """

    model: str
    exam: Exam
    greedy: ThetaEvaluation
    drawn: ThetaEvaluation | None
    samples: int

    @property
    def evaluations(self) -> dict[str, ThetaEvaluation]:
        """The evaluation with greedy completions, and that with drawn ones if there is one."""
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
        """Return a line if rewards were lost, and a line if a grader hit its time limit."""
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
    """Return the model's results, in the order of `exams`.

    If several processes were launched together, only the leading one gets results; the others
    return an empty list. Exams share an engine if their settings of it are the same; stop strings,
    for example, may differ.

    Raises:
        RewardError: a reward function failed at every completion; or at one, if `on_reward_error`
            is `raise`.
    """
    results: dict[str, ExamResult] = {}
    by_engine = sorted(exams, key=lambda exam: repr(_engine_config(exam)))
    for _, group in groupby(by_engine, _engine_config):
        for result in _with_one_engine(model, list(group), sampling):
            results[result.exam.name] = result
        gc.collect()  # free this engine before the next one is built
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [results[exam.name] for exam in exams if exam.name in results]


def rewards_of(evaluation: ThetaEvaluation) -> NDArray[np.float64]:
    """Return the reward of each completion, NaN where there is none."""
    return np.array([record["reward"] for record in evaluation.records], np.float64)


def _with_one_engine(
    name: str, exams: Sequence[Exam], sampling: Sampling | None
) -> Iterator[ExamResult]:
    """Load the model `name`, and yield its result in each exam; none if this process follows."""
    config = exams[0].config
    prompts = {exam.name: [row["prompt"] for row in exam.rows] for exam in exams}
    model = Model(name, config, None, prompts)
    for exam in exams if model.layout.sees else ():
        check_shown(exam.rows, exam.name)
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
    """Raise RewardError if a reward function failed at all completions: it must have a bug."""
    for evaluation in result.evaluations.values():
        for name, failures in evaluation.failures.items():
            if len(failures) == len(evaluation.records):
                why = failures[min(failures)].reason
                raise RewardError(
                    f"reward function {name} failed at all {len(failures)} completions "
                    f"of {result.model} for {result.exam.name}; first: it {why}"
                )


def _engine_config(exam: Exam) -> RunConfig:
    """Return the exam's config, in which settings that do not affect the engine are all alike."""
    alike = {
        "task": None,
        "dataset_name": None,
        "reward_weights": None,
        "max_completion_length": 1,
    }
    return build(RunConfig, vars(exam.config) | alike)
