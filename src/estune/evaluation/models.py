"""Several models on several tasks: each model is loaded once, answers all tasks, and makes room for the next.

results = examine("out/checkpoint-10", exams, sampling)
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.guard import guarded
from estune.common.types import Row, Sampling
from estune.config import RunConfig
from estune.engines.tokens import Tokenizer
from estune.errors import ConfigError, RewardError
from estune.evaluation.divergence import Divergence, Likelihood, estimate
from estune.monitor.callbacks import Callbacks
from estune.monitor.held_out import HeldOut, held_out_scores
from estune.rewards.marks import overran_line
from estune.rewards.scoring import RewardFunctions
from estune.run.model import Model
from estune.tasks.reward_functions import resolve_rewards
from estune.tasks.rows import rows_of
from estune.theta.checkpoint import resolve

Key = tuple[str, str]  # model, task


@dataclass(frozen=True)
class Exam:
    """A task as it is put to a model: held-out rows, and what scores the answers."""

    name: str
    config: RunConfig
    rows: list[Row]
    rewards: RewardFunctions


@dataclass(frozen=True)
class Result:
    """What a model did in an exam: greedily, and with `samples` completions a prompt where some were drawn."""

    model: str
    exam: Exam
    greedy: HeldOut
    drawn: HeldOut | None
    samples: int

    @property
    def lost(self) -> str:
        """What to say of rewards that were lost; nothing where none were."""
        each = [
            (name, found)
            for held in (self.greedy, self.drawn)
            if held
            for name, found in held.failures.items()
        ]
        if not each:
            return ""
        name, first = each[0]
        count = sum(len(found) for _, found in each)
        return (
            f"{self.exam.name}: {count} rewards were lost; first: {name} {first[min(first)].reason}"
        )

    @property
    def overran(self) -> str:
        """What to say of answers that met a grader's time limit; nothing where none did."""
        count = self.greedy.overran + (self.drawn.overran if self.drawn else 0)
        return f"{self.exam.name}: {overran_line(count)}" if count else ""

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Of the greedy answers, (P,); NaN where no function gave a number."""
        return _rewards(self.greedy)

    @property
    def drawn_rewards(self) -> NDArray[np.float64]:
        """Of the drawn answers, (P, n)."""
        return (
            _rewards(self.drawn).reshape(-1, self.samples)
            if self.drawn
            else np.empty((len(self.exam.rows), 0))
        )


def exam(name: str, config: RunConfig, rows: Any, reward_funcs: Any) -> Exam:
    """An exam, checked as a trainer would. Raises InputError: the rows or the reward functions cannot work."""
    checked = rows_of(rows, name)
    rewards = RewardFunctions.of(resolve_rewards(reward_funcs), config)
    rewards.check([column for column in checked[0] if column != "prompt"])
    return Exam(name, config, checked, rewards)


def examine(model: str, exams: Sequence[Exam], sampling: Sampling | None) -> list[Result]:
    """The model's results, in the exams' order; none in a launched process that does not lead.

    Tasks whose settings differ in what an engine is built from (stop strings, say) get an engine each.

    Raises:
        RewardError: a reward function failed at every completion, or anywhere where `on_reward_error` is `raise`.
    """
    results: dict[str, Result] = {}
    for _, group in groupby(sorted(exams, key=lambda one: repr(_built_from(one))), _built_from):
        for result in _together(model, list(group), sampling):
            results[result.exam.name] = result
        gc.collect()  # the engine that just went, before there is another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return [results[one.name] for one in exams if one.name in results]


def divergences(results: Sequence[Result], base: str) -> dict[Key, Divergence]:
    """How far each model moved from `base`, by what it drew in each exam; 0 for the base itself.

    Raises:
        ConfigError: a model reads tokens otherwise than the base.
    """
    moved = {_key(one): Divergence(0.0, 0.0, 0.0, 0.0) for one in results}
    others = [one for one in results if one.model != base]
    if not others:
        return moved
    _check_vocabulary([base, *(one.model for one in others)], results[0].exam.config)
    at_base = _likelihoods(base, others)
    for model in dict.fromkeys(one.model for one in others):
        theirs = [one for one in others if one.model == model]
        own = _likelihoods(model, theirs)
        moved |= {
            _key(one): estimate(own[_key(one)], at_base[_key(one)], one.samples) for one in theirs
        }
    return moved


def _likelihoods(model: str, results: Sequence[Result]) -> Mapping[Key, list[NDArray[np.float64]]]:
    """Of the completions in `results`, whoever drew them, under `model`."""
    config = results[0].exam.config
    reader = Likelihood(
        resolve(model, config.model_revision, trust_remote_code=config.trust_remote_code), config
    )
    return {_key(one): reader.of(_drawn_pairs(one), one.exam.config.stop or []) for one in results}


def _drawn_pairs(result: Result) -> list[tuple[Any, Any]]:
    assert result.drawn is not None
    prompts = [row["prompt"] for row in result.exam.rows for _ in range(result.samples)]
    return list(zip(prompts, result.drawn.completions, strict=True))


def _check_vocabulary(models: Sequence[str], config: RunConfig) -> None:
    folders = [
        resolve(model, config.model_revision, trust_remote_code=config.trust_remote_code)
        for model in models
    ]
    with guarded(ConfigError, "kl: the tokenizers cannot be compared"):
        first, *others = [Tokenizer(folder, config).inner.get_vocab() for folder in folders]
    for model, vocabulary in zip(models[1:], others, strict=True):
        if vocabulary != first:
            raise ConfigError(
                f"kl: {model} has another tokenizer than {models[0]}, so their probabilities cannot be compared; give its own base"
            )


def _key(result: Result) -> Key:
    return result.model, result.exam.name


def _together(source: str, exams: Sequence[Exam], sampling: Sampling | None) -> Iterator[Result]:
    config = exams[0].config
    model = Model(
        source, config, None, {one.name: [row["prompt"] for row in one.rows] for one in exams}
    )
    workers, state = model.workers, Callbacks(config, []).state
    if not model.leads:
        workers.serve()
        return
    try:
        for one in exams:
            about = workers, one.rewards, one.rows, one.config, model.theta.version, state
            drawn = held_out_scores(*about, sampling) if sampling else None
            greedy = held_out_scores(*about)
            _check_scored(source, one.name, [greedy, *([drawn] if drawn else [])])
            yield Result(source, one, greedy, drawn, sampling.n if sampling else 0)
    finally:
        for one in exams:
            one.rewards.close()
        workers.release()


def _check_scored(model: str, exam: str, held: Sequence[HeldOut]) -> None:
    """A function that fails at everything is a bug, and figures without it would tell of something else. Raises RewardError."""
    for one in held:
        for name, failures in one.failures.items():
            if len(failures) == len(one.records):
                reason = failures[min(failures)].reason
                raise RewardError(
                    f"reward function {name} failed at all {len(failures)} answers of {model} to {exam}; first: it {reason}"
                )


def _built_from(one: Exam) -> RunConfig:
    """The settings without those that a single task may have of its own."""
    return replace(
        one.config, task=None, max_completion_length=1, dataset_name=None, reward_weights=None
    )


def _rewards(held: HeldOut) -> NDArray[np.float64]:
    return np.array(
        [np.nan if record["reward"] is None else record["reward"] for record in held.records],
        np.float64,
    )
