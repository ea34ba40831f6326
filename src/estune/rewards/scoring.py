"""Score a member's completions: call every reward function with all of them, and sum the rewards.

The calling convention is TRL's, so that a function written for `GRPOTrainer` works unchanged:
keyword arguments, every dataset column as a list, async functions, None for "does not apply". The
package processes/ calls the functions and limits their time and memory.
"""

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import known, mean
from estune.common.types import Completion, Row, is_token_ids
from estune.config import ESConfig
from estune.errors import ConfigError
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

_LOGGERS = ("log_extra", "log_metric")
OnError = Literal["lowest", "zero", "drop", "raise"]

_MAX_FAILED = 0.5  # a member is left out if more than this fraction of its completions failed


@dataclass(frozen=True)
class Scores:
    """The rewards of one member.

    total: the weighted sum for each completion, (B,); NaN where no function returned a number.
    by_function: name of a function → its rewards (B,); NaN where it returned None. A failed
        reward is NaN until `settle` replaces it.
    metrics: what the functions logged through `log_metric`.
    extra: what they logged through `log_extra`.
    failures: name of a function → index of a completion → what went wrong.
    overran: how many completions exceeded a function's own time limit and got its lowest grade.
    """

    total: NDArray[np.float64]
    by_function: dict[str, NDArray[np.float64]]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    failures: dict[str, dict[int, Failure]] = field(default_factory=dict)
    overran: int = 0

    @property
    def mean_reward(self) -> float:
        """The mean reward of the completions that have one; NaN if none has."""
        return mean(known(self.total))


@dataclass(frozen=True)
class Pending:
    """A member's completions while the reward functions score them.

    outcomes: one future per function.
    strict: whether `result` raises if a function failed.
    """

    outcomes: "list[Future[FunctionScores]]"
    rewards: "RewardFunctions"
    strict: bool

    def done(self) -> bool:
        """Return whether all functions have returned."""
        return all(outcome.done() for outcome in self.outcomes)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all functions have returned, or at most `seconds`."""
        wait(self.outcomes, timeout=seconds)

    def on_done(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a function has returned; the call can be in any thread."""
        for outcome in self.outcomes:
            outcome.add_done_callback(lambda _: listener())

    def result(self) -> Scores:
        """Wait for the scores and return them, with NaN for rewards that failed (see `settle`).

        Raises:
            RewardError: a function failed, and `strict` is set.
        """
        names, weights = self.rewards.names, self.rewards.weights
        scores = dict(zip(names, (one.result() for one in self.outcomes), strict=True))
        returned = {name: np.array(one.values, np.float64) for name, one in scores.items()}
        by_function, too_large = weighted_sum.within_range(returned, weights)
        failures = _failures(scores, too_large)
        if self.strict and failures:
            name, failed = next(iter(failures.items()))
            raise failed[min(failed)].as_error(name)
        return Scores(
            total=weighted_sum.weighted(by_function, weights),
            by_function=by_function,
            metrics={k: v for one in scores.values() for k, v in one.metrics.items()},
            extra={k: v for one in scores.values() for k, v in one.extra.items()},
            failures=failures,
            overran=sum(one.overran for one in scores.values()),
        )


class RewardFunctions:
    """Reward functions with their weights.

    Args:
        functions: callables with TRL's calling convention.
        weights: one per function; by default all are 1.
        limits: limits on the functions' time, memory and processes.
        on_error: what to do if a function fails for a completion. `lowest` gives the lowest reward
            of this function among all members of the step; `zero` gives 0; `drop` leaves the
            completion out; `raise` ends the run.

    Raises:
        ConfigError: the number of weights differs from the number of functions.
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
        self.names = _distinct([reward_name(function) for function in functions])
        self._on_error = on_error
        self._pool = Pool(self.functions, self.names, limits or RewardLimits())

    @classmethod
    def of(cls, functions: Sequence[RewardFunc], config: ESConfig) -> "RewardFunctions":
        """Return `functions` with the weights and limits of `config`.

        Raises:
            ConfigError: the number of weights differs from the number of functions.
        """
        limits = RewardLimits(
            config.reward_workers,
            config.reward_timeout,
            config.reward_memory,
            config.reward_concurrency,
        )
        return cls(functions, config.reward_weights, limits, config.on_reward_error)

    def check(self, columns: Sequence[str]) -> None:
        """Check every function's parameters against the dataset's columns.

        Raises:
            RewardError: a function needs a parameter that nothing provides.
        """
        if hidden := [name for name in columns if name in (*OFFERED, "self")]:
            logger.warning(
                "the dataset's column %r does not reach reward functions,"
                " which get something else under that name",
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
        """Start to score `completions`, one for each of the prompts in `rows`.

        first: whether this is the first batch of the run. A failure in it is most likely a bug of
            the function, so it is raised even if `on_error` is `lowest`.
        """
        strict = self._on_error == "raise" or (first and self._on_error == "lowest")
        columns = _columns(rows, completions)
        calls = [_call(function, columns, len(rows), state) for function in self.functions]
        outcomes = [self._pool.submit(i, call, strict=strict) for i, call in enumerate(calls)]
        return Pending(outcomes, self, strict)

    def none(self, count: int) -> Scores:
        """Return the scores of a member that is left out: NaN for each of `count` completions."""
        nothing = np.full(count, np.nan)
        return Scores(nothing, {name: nothing.copy() for name in self.names})

    def score(
        self,
        rows: Sequence[Row],
        completions: Sequence[Completion],
        state: Any = None,
        *,
        first: bool = True,
    ) -> Scores:
        """Score completions and wait for the result.

        Raises:
            RewardError: a function failed, and `on_error` or `first` says to raise. A function
                fails if it raises, takes too long, or does not return one finite number or None
                per completion.
        """
        return self.settle([self.submit(rows, completions, state, first=first).result()])[0]

    def settle(self, scores: Sequence[Scores]) -> list[Scores]:
        """Replace failed rewards as `on_error` says.

        scores: those of all members of the step, among which `lowest` looks for the lowest reward.
        """
        if not any(score.failures for score in scores):
            return list(scores)
        lowest = {
            name: _lowest([score.by_function[name] for score in scores]) for name in self.names
        }
        return [self._settled(score, lowest) for score in scores]

    def close(self) -> None:
        """End the reward processes; the next call starts new ones."""
        self._pool.close()

    def _settled(self, scores: Scores, lowest: dict[str, float]) -> Scores:
        by_function = {name: values.copy() for name, values in scores.by_function.items()}
        for name, failures in scores.failures.items():
            reward = {"lowest": lowest[name], "zero": 0.0}.get(self._on_error, math.nan)
            by_function[name][list(failures)] = reward
        total = weighted_sum.weighted(by_function, self.weights)
        failed = sorted({i for failures in scores.failures.values() for i in failures})
        if self._on_error == "drop":
            total[failed] = np.nan
        if len(failed) > _MAX_FAILED * total.size:
            total[:] = np.nan
        return replace(scores, total=total, by_function=by_function)


def _failures(
    scores: Mapping[str, FunctionScores], too_large: Mapping[str, dict[int, Failure]]
) -> dict[str, dict[int, Failure]]:
    found = {name: one.failures | too_large[name] for name, one in scores.items()}
    return {name: failed for name, failed in found.items() if failed}


def _lowest(values: Sequence[NDArray[np.float64]]) -> float:
    return float(np.fmin.reduce(np.concatenate(values), initial=np.nan))


def _columns(rows: Sequence[Row], completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """Return the arguments that are lists with one value per completion."""
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_PASSED}
    prompts = [row.get("prompt", "") for row in rows]
    return columns | {
        "prompts": [row.get("prompt") for row in rows],
        "completions": [_as_prompt(*each) for each in zip(prompts, completions, strict=True)],
        "completion_ids": [completion.ids for completion in completions],
    }


def _as_prompt(prompt: Any, completion: Completion) -> Any:
    """Return the completion in the prompt's form: a text, or a list with one message."""
    if isinstance(prompt, str) or is_token_ids(prompt):
        return completion.text
    return [{"role": "assistant", "content": completion.text}]


def _call(function: RewardFunc, columns: dict[str, list[Any]], count: int, state: Any) -> Call:
    accepted_columns = accepted(function, columns)
    others = accepted(function, dict.fromkeys(("trainer_state", *_LOGGERS)))
    shared = {"trainer_state": state} if "trainer_state" in others else {}
    loggers = tuple(name for name in _LOGGERS if name in others)
    seconds = own_limit(function, accepted_columns)
    return Call(accepted_columns, shared, loggers, count, seconds)


def _distinct(names: list[str]) -> list[str]:
    """Return `names` with numbers added where they repeat: a second "f" becomes "f_2"."""
    distinct: list[str] = []
    for name in names:
        candidates = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        distinct.append(next(candidate for candidate in candidates if candidate not in distinct))
    return distinct
