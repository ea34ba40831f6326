"""Score a member's completions: every function once with all of them, weighted sum, then the mean over the batch.

The calling convention is TRL's, so that a reward written for `GRPOTrainer` works unchanged: keywords, every dataset
column as a list, async functions gathered together, `None` for "does not apply".
"""

import asyncio
import functools
import inspect
import itertools
import math
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.errors import ConfigError, RewardError
from estune.member import Completion, is_token_ids
from estune.rewards.functions import RewardFunc, accepted, check_parameters, reward_name

Row = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """What one member earned.

    total: weighted sum for each completion, (B,), NaN where no function gave a number.
    by_function: reward function's name → its rewards (B,), NaN for None.
    metrics, extra: what the functions logged through log_metric and log_extra.
    """

    total: NDArray[np.float64]
    by_function: dict[str, NDArray[np.float64]]
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def fitness(self) -> float:
        """The mean over the completions that got a number; NaN when none did, and the member is left out."""
        scored = self.total[~np.isnan(self.total)]
        return math.fsum(scored) / scored.size if scored.size else math.nan


class Rewards:
    """Reward functions with their weights.

    Raises:
        ConfigError: the number of weights is not the number of functions.
    """

    def __init__(self, functions: Sequence[RewardFunc], weights: Sequence[float] | None = None) -> None:
        if weights is not None and len(weights) != len(functions):
            raise ConfigError(f"reward_weights: {len(weights)} weights for {len(functions)} reward functions")
        self.functions = list(functions)
        self.weights = list(weights) if weights is not None else [1.0] * len(functions)
        self.names = _unlike([reward_name(function) for function in functions])

    def check(self, columns: Sequence[str]) -> None:
        """Check every function's parameters against the dataset's columns; raises RewardError."""
        for function in self.functions:
            check_parameters(function, columns)

    def score(self, rows: Sequence[Row], completions: Sequence[Completion], state: Any = None) -> Scores:
        """Call every function with all completions; `rows` are the dataset rows that they answer.

        Raises:
            RewardError: a function raised, or did not return one finite number or None a completion.
        """
        scores = Scores(np.empty(0), {})
        keywords = _keywords(rows, completions, state, scores)
        returned = _call_all(self.functions, self.names, keywords)
        for name, values in zip(self.names, returned, strict=True):
            scores.by_function[name] = _numbers(name, values, len(rows))
        stacked = np.stack(list(scores.by_function.values()))  # (functions, B)
        weighted = np.nansum(stacked * np.array(self.weights)[:, None], axis=0)
        weighted[np.isnan(stacked).all(axis=0)] = np.nan
        return Scores(weighted, scores.by_function, scores.metrics, scores.extra)


def _keywords(rows: Sequence[Row], completions: Sequence[Completion], state: Any, scores: Scores) -> dict[str, Any]:
    texts = [completion.text for completion in completions]
    conversational = [not isinstance(prompt := row.get("prompt", ""), str) and not is_token_ids(prompt) for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
    return columns | {
        "prompts": [row.get("prompt") for row in rows],
        "completions": [
            [{"role": "assistant", "content": text}] if chat else text for text, chat in zip(texts, conversational, strict=True)
        ],
        "completion_ids": [completion.ids for completion in completions],
        "trainer_state": state,
        "log_extra": lambda column, values: scores.extra.__setitem__(column, list(values)),
        "log_metric": lambda name, value: scores.metrics.__setitem__(name, float(value)),
    }


def _call_all(functions: Sequence[RewardFunc], names: Sequence[str], keywords: dict[str, Any]) -> list[Any]:
    """Call the plain functions in turn, then await the async ones together; the results in the functions' order."""
    results: list[Any] = []
    try:
        for function, name in zip(functions, names, strict=True):
            results.append(_call(function, name, keywords))
    except RewardError:
        for result in filter(inspect.iscoroutine, results):
            result.close()  # else Python warns that it was never awaited
        raise
    waiting = {name: result for name, result in zip(names, results, strict=True) if inspect.isawaitable(result)}
    if not waiting:
        return results
    with ThreadPoolExecutor(1) as thread:  # a thread of its own, since a notebook already runs an event loop in this one
        done = thread.submit(asyncio.run, _gathered(dict(zip(names, functions, strict=True)), waiting)).result()
    return [done.get(name, result) for name, result in zip(names, results, strict=True)]


async def _gathered(functions: dict[str, RewardFunc], waiting: dict[str, Any]) -> dict[str, Any]:
    results = await asyncio.gather(*(_awaited(functions[name], name, result) for name, result in waiting.items()))
    return dict(zip(waiting, results, strict=True))


def _call(function: RewardFunc, name: str, keywords: dict[str, Any]) -> Any:
    try:
        return function(**accepted(function, keywords))
    except (Exception, SystemExit) as error:
        raise _failed(function, name, error) from error


async def _awaited(function: RewardFunc, name: str, result: Any) -> Any:
    try:
        return await result
    except (Exception, SystemExit) as error:
        raise _failed(function, name, error) from error


def _failed(function: RewardFunc, name: str, error: BaseException) -> RewardError:
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [(file, line) for file, line in lines if file == _source(function)]
    file, number = (own or lines)[-1]  # the user's own line, rather than one in a library that it called
    place = f" at {file}:{number}"
    said = " ".join(str(error).split())[:300]
    return RewardError(f"reward function {name} raised {type(error).__name__}: {said}{place}; mend it and resume the run")


def _source(function: RewardFunc) -> str | None:
    """The file that a reward function was written in."""
    inner = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    return code.co_filename if code else None


def _numbers(name: str, values: Any, count: int) -> NDArray[np.float64]:
    """The returned values as numbers, NaN for None."""
    remedy = "it must return one number (or None) a completion"
    if not _is_list(values):
        raise RewardError(f"reward function {name} returned {_shown(values)}; {remedy}")
    if len(values) != count:
        raise RewardError(f"reward function {name} returned {len(values)} rewards for {count} completions; {remedy}")
    return np.array([_number(name, i, value, remedy) for i, value in enumerate(values)], np.float64)


def _is_list(values: Any) -> bool:
    single = isinstance(values, (str, bytes, dict)) or getattr(values, "ndim", 1) == 0  # ndim: of an array or a tensor
    return not single and hasattr(values, "__len__") and hasattr(values, "__getitem__")


def _number(name: str, index: int, value: Any, remedy: str) -> float:
    if value is None:
        return math.nan
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except Exception:  # a tensor of several numbers raises RuntimeError, 10**400 OverflowError
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"reward function {name} returned {_shown(value)} for completion {index}; {remedy}")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _unlike(names: list[str]) -> list[str]:
    """Names that all differ: a second function of one name gets a number behind it."""
    unlike: list[str] = []
    for name in names:
        candidates = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        unlike.append(next(candidate for candidate in candidates if candidate not in unlike))
    return unlike
