"""Score a member's completions: every function once with all of them, weighted sum, then the mean over the batch.

The calling convention is TRL's, so that a reward written for `GRPOTrainer` works unchanged: keywords, every dataset
column as a list, async functions, `None` for "does not apply". How functions are called, and what ends them, is in pool.py.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import mean
from estune.common.types import Completion, is_token_ids
from estune.config import ESConfig
from estune.errors import ConfigError, RewardError
from estune.rewards import weighted_sum
from estune.rewards.call import Call, Failure
from estune.rewards.marks import own_limit
from estune.rewards.processes.pool import FunctionScores, Pool, RewardLimits
from estune.rewards.signature import (
    NOT_PASSED,
    OFFERED,
    RewardFunc,
    accepted,
    check_parameters,
    reward_name,
)

logger = logging.getLogger(__name__)

Row = dict[str, Any]
OnError = Literal["lowest", "zero", "drop", "raise"]

_MOST_FAILED = 0.5  # part of a member's completions whose rewards may be lost; with more the member is left out


@dataclass(frozen=True)
class Scores:
    """What one member earned.

    total: weighted sum for each completion, (B,), NaN where no function gave a number.
    by_function: reward function's name → its rewards (B,), NaN for None and, until `settle`, where it failed.
    metrics, extra: what the functions logged through log_metric and log_extra.
    failures: reward function's name → completion → what went wrong.
    overran: completions at which a function met a time limit of its own, and gave its lowest grade.
    """

    total: NDArray[np.float64]
    by_function: dict[str, NDArray[np.float64]]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    failures: dict[str, dict[int, Failure]] = field(default_factory=dict)
    overran: int = 0

    @property
    def fitness(self) -> float:
        """The mean over the completions that got a number; NaN when none did, and the member is left out."""
        scored = self.total[~np.isnan(self.total)]
        return mean(scored)


@dataclass(frozen=True)
class Pending:
    """A member's completions on their way through the reward functions."""

    outcomes: "list[Future[FunctionScores]]"
    rewards: "RewardFunctions"
    strict: bool  # whether a failure is raised

    def done(self) -> bool:
        return all(outcome.done() for outcome in self.outcomes)

    def wait(self, seconds: float | None = None) -> None:
        wait(self.outcomes, timeout=seconds)

    def on_done(self, listener: Callable[[], None]) -> None:
        """Let `listener` know when each function has answered, in whatever thread that is."""
        for outcome in self.outcomes:
            outcome.add_done_callback(lambda _: listener())

    def result(self) -> Scores:
        """The scores once they are there, rewards that failed still missing.

        Raises:
            RewardError: a function failed, where that was not to be borne.
        """
        found = [outcome.result() for outcome in self.outcomes]
        names = self.rewards.names
        by_function = {
            name: np.array(outcome.values, np.float64)
            for name, outcome in zip(names, found, strict=True)
        }
        metrics = {name: value for outcome in found for name, value in outcome.metrics.items()}
        extra = {name: values for outcome in found for name, values in outcome.extra.items()}
        by_function, beyond = weighted_sum.within_range(by_function, self.rewards.weights)
        by_name = zip(names, found, strict=True)
        failures = {
            name: failed for name, one in by_name if (failed := one.failures | beyond[name])
        }
        if self.strict and failures:
            raise _raised(failures)
        overran = sum(outcome.overran for outcome in found)
        return Scores(
            self.rewards.weighted(by_function), by_function, metrics, extra, failures, overran
        )


class RewardFunctions:
    """Reward functions with their weights.

    Args:
        functions: callables, called as TRL does.
        weights: one a function; default 1 each.
        limits: what they may take.
        on_error: what a completion counts at which a function failed: `lowest`, that function's lowest reward among all that
            are settled together; `zero`; `drop`, none; or `raise`, which ends the run.

    Raises:
        ConfigError: the number of weights is not the number of functions.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunc],
        weights: Sequence[float] | None = None,
        limits: RewardLimits | None = None,
        on_error: OnError = "lowest",
    ) -> None:
        if weights is not None and len(weights) != len(functions):
            raise ConfigError(
                f"reward_weights: {len(weights)} weights for {len(functions)} reward functions"
            )
        self.functions = list(functions)
        self.weights = list(weights) if weights is not None else [1.0] * len(functions)
        self.names = _unlike([reward_name(function) for function in functions])
        self._on_error = on_error
        self._pool = Pool(self.functions, self.names, limits or RewardLimits())

    @classmethod
    def of(cls, functions: Sequence[RewardFunc], config: ESConfig) -> "RewardFunctions":
        """`functions` with the weights and limits of `config`. Raises ConfigError."""
        limits = RewardLimits(
            config.reward_workers,
            config.reward_timeout,
            config.reward_memory,
            config.reward_concurrency,
        )
        return cls(functions, config.reward_weights, limits, config.on_reward_error)

    def check(self, columns: Sequence[str]) -> None:
        """Check every function's parameters against the dataset's columns; raises RewardError."""
        if hidden := [name for name in columns if name in (*OFFERED, "self")]:
            logger.warning(
                "the dataset's column %r does not reach reward functions, which get something else by that name",
                hidden[0],
            )
        for function in self.functions:
            check_parameters(function, [name for name in columns if name not in NOT_PASSED])

    def submit(
        self,
        rows: Sequence[Row],
        completions: Sequence[Completion],
        state: Any = None,
        *,
        first: bool = False,
    ) -> Pending:
        """Begin to score the completions that answer `rows`. In the `first` batch a failure is a bug, and raised."""
        strict = self._on_error == "raise" or (first and self._on_error == "lowest")
        keywords = _columns(rows, completions)
        calls = [_call(function, keywords, len(rows), state) for function in self.functions]
        return Pending(
            [self._pool.submit(index, call, strict=strict) for index, call in enumerate(calls)],
            self,
            strict,
        )

    def none(self, count: int) -> Scores:
        """The scores of a member that is left out: none for any of its `count` completions."""
        return Scores(np.full(count, np.nan), {name: np.full(count, np.nan) for name in self.names})

    def score(
        self,
        rows: Sequence[Row],
        completions: Sequence[Completion],
        state: Any = None,
        *,
        first: bool = True,
    ) -> Scores:
        """Score completions by themselves.

        Raises:
            RewardError: a function raised, or did not return one finite number or None a completion, where that is not borne.
        """
        return self.settle([self.submit(rows, completions, state, first=first).result()])[0]

    def settle(self, scores: Sequence[Scores]) -> list[Scores]:
        """Give the completions at which functions failed what they count, which depends on all that are scored with them."""
        if not any(score.failures for score in scores):
            return list(scores)
        lowest = {
            name: _lowest([score.by_function[name] for score in scores]) for name in self.names
        }
        return [self._settled(score, lowest) for score in scores]

    def weighted(self, by_function: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The weighted sum (B,) of the functions' rewards, NaN where there is none."""
        return weighted_sum.weighted(by_function, self.weights)

    def close(self) -> None:
        """End the processes in which functions are called; another call starts them anew."""
        self._pool.close()

    def _settled(self, scores: Scores, lowest: dict[str, float]) -> Scores:
        by_function = {name: values.copy() for name, values in scores.by_function.items()}
        for name, failures in scores.failures.items():
            by_function[name][list(failures)] = {"lowest": lowest[name], "zero": 0.0}.get(
                self._on_error, math.nan
            )
        total = self.weighted(by_function)
        lost = sorted({i for failures in scores.failures.values() for i in failures})
        if self._on_error == "drop":
            total[lost] = np.nan
        if len(lost) > _MOST_FAILED * total.size:
            total[:] = np.nan
        return replace(scores, total=total, by_function=by_function)


def _raised(failures: dict[str, dict[int, Failure]]) -> RewardError:
    name, failed = next(iter(failures.items()))
    return RewardError(
        f"reward function {name} {failed[min(failed)].reason}; mend it and resume the run"
    )


def _lowest(values: Sequence[NDArray[np.float64]]) -> float:
    there = np.concatenate(values)
    there = there[~np.isnan(there)]
    return float(there.min()) if there.size else math.nan


def _columns(rows: Sequence[Row], completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """What has one value a completion."""
    texts = [completion.text for completion in completions]
    conversational = [
        not isinstance(prompt := row.get("prompt", ""), str) and not is_token_ids(prompt)
        for row in rows
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_PASSED}
    return columns | {
        "prompts": [row.get("prompt") for row in rows],
        "completions": [
            [{"role": "assistant", "content": text}] if chat else text
            for text, chat in zip(texts, conversational, strict=True)
        ],
        "completion_ids": [completion.ids for completion in completions],
    }


def _call(function: RewardFunc, columns: dict[str, list[Any]], count: int, state: Any) -> Call:
    taken = accepted(
        function, columns | {"trainer_state": None, "log_extra": None, "log_metric": None}
    )
    shared = {"trainer_state": state} if "trainer_state" in taken else {}
    loggers = tuple(name for name in ("log_extra", "log_metric") if name in taken)
    given = {name: values for name, values in columns.items() if name in taken}
    return Call(given, shared, loggers, count, own_limit(function, given))


def _unlike(names: list[str]) -> list[str]:
    """Names that all differ: a second function of one name gets a number behind it."""
    unlike: list[str] = []
    for name in names:
        candidates = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        unlike.append(next(candidate for candidate in candidates if candidate not in unlike))
    return unlike
