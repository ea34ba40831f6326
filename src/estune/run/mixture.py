"""Several tasks in one run: how many of each a batch has, when a task joins or leaves, and whose reward scores what.

Rows of all tasks stand in one training set with a column `task`. Which of them a step asks is a pure function of seed,
step and, in a curriculum by reward, of what earlier steps earned, which the journal holds: so a resume asks the same.
"""

import inspect
import math
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import mean
from estune.common.types import Row
from estune.config import ESConfig
from estune.errors import ConfigError, DataError
from estune.noise.seeds import mix
from estune.rewards.marks import Grades
from estune.rewards.returned_values import is_list
from estune.rewards.signature import NOT_PASSED, RewardFunc, accepted, check_parameters, reward_name
from estune.tasks.rows import rows_of

COLUMN = "task"  # says which part a row belongs to
_DRAWS = 0x9FB21C651E98DF25  # sets the numbers that are drawn here apart from members' seeds
Earned = Mapping[
    str, float | None
]  # part → mean reward of a step; parts that were not asked are missing


@dataclass(frozen=True)
class Part:
    """One task of a mixture.

    rows: with a `prompt`, and whatever columns its reward functions want.
    reward_funcs: score its rows alone; none where the run's reward functions score all.
    weight: its share of a batch, relative to those of the other parts that are in.
    from_step, until_step: first and last step that it is in.
    from_reward: it joins after the first step in which the part before it earned at least this on average.

    Raises:
        ConfigError: a weight or a step that cannot be.
    """

    name: str
    rows: Sequence[Row]
    reward_funcs: Sequence[RewardFunc] = ()
    weight: float = 1.0
    from_step: int = 1
    until_step: int | None = None
    from_reward: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"datasets: {self.name}: weight must be greater than 0; it is {self.weight}"
            )
        if self.from_step < 1 or (self.until_step is not None and self.until_step < self.from_step):
            raise ConfigError(
                f"datasets: {self.name}: from_step must be from 1 on and not after until_step; it is {self.from_step}"
            )

    def planned(self, step: int) -> bool:
        """Whether the part is in at `step`, as far as steps decide."""
        return self.from_step <= step and (self.until_step is None or step <= self.until_step)


class Mixture:
    """Parts that are trained on together; iterating gives all rows, with their part's name in the column `task`.

    Columns that only some parts have are None in the others.

    Raises:
        ConfigError: no parts, two of one name, or a first part that waits for the one before it.
        DataError: a part's rows are no rows, or have a column `task` of their own.
        RewardError: a part's reward function needs a column that the part does not have.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        names = [part.name for part in parts]
        if not parts or len(set(names)) < len(names):
            raise ConfigError(
                f"datasets: give at least one, and each another name (label); they are {', '.join(names) or 'none'}"
            )
        if parts[0].from_reward is not None:
            raise ConfigError(
                f"datasets: {names[0]}: from_reward looks at the one before it, and it is the first"
            )
        self.parts = list(parts)
        by_part = [_checked(part) for part in parts]
        columns = list(dict.fromkeys(column for rows in by_part for column in rows[0]))
        self._rows = [
            {column: row.get(column) for column in columns} | {COLUMN: name}
            for name, rows in zip(names, by_part, strict=True)
            for row in rows
        ]
        ends = np.cumsum([len(rows) for rows in by_part]).tolist()
        self._where = {
            name: range(end - len(rows), end)
            for name, rows, end in zip(names, by_part, ends, strict=True)
        }

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def reward_funcs(self) -> list[RewardFunc]:
        """The parts' reward functions, each for the rows of its part alone."""
        return [
            ForTask(function, part.name) for part in self.parts for function in part.reward_funcs
        ]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """All but the rows: what else decides which rows a step asks."""
        plans = [
            {
                name: value
                for name, value in vars(part).items()
                if name not in ("rows", "reward_funcs")
            }
            for part in self.parts
        ]
        return [
            plan | {"rows": len(part.rows)} for plan, part in zip(plans, self.parts, strict=True)
        ]

    @property
    def by_reward(self) -> bool:
        """Whether some part waits for a reward."""
        return any(part.from_reward is not None for part in self.parts)

    def check(self, config: ESConfig) -> None:
        """Raises ConfigError when weights have no batch to share, or a step may have nothing to ask."""
        if config.batch_size is None and len({part.weight for part in self.parts}) > 1:
            raise ConfigError(
                "batch_size: weights are shares of a batch; give one, or the same weight to all datasets"
            )
        firm = [part for part in self.parts if part.from_reward is None]
        for step in sorted(
            {1, *(part.until_step + 1 for part in firm if part.until_step is not None)}
        ):
            if step <= config.max_steps and not any(part.planned(step) for part in firm):
                raise ConfigError(
                    f"datasets: none of them is in at step {step}; let one go on until then, or begin before"
                )

    def active(self, step: int, history: Sequence[Earned]) -> list[Part]:
        """The parts that are in at `step`; `history` are the rewards of the steps before it."""
        before = [None, *self.parts]
        return [
            part
            for part, previous in zip(self.parts, before, strict=False)
            if part.planned(step) and _reached(part, previous, history)
        ]

    def batch(self, config: ESConfig, step: int, history: Sequence[Earned]) -> list[int]:
        """Which rows every member of `step` answers: each active part's share, drawn afresh; without batch_size all its rows.

        Shares are drawn systematically: a part with share p of b rows gets ⌊pb⌋ or ⌈pb⌉ of them, pb on average.
        """
        parts = self.active(step, history)
        if config.batch_size is None:
            return [row for part in parts for row in self._where[part.name]]
        start = mix(mix(config.seed ^ _DRAWS) + step)
        counts = shares([part.weight for part in parts], config.batch_size, (start >> 11) / 2**53)
        return [
            self._where[part.name][i]
            for n, (part, count) in enumerate(zip(parts, counts, strict=True))
            for i in self._draw(part, count, mix(start + n))
        ]

    def earned(
        self, rows: Sequence[Row], totals: NDArray[np.float64]
    ) -> dict[str, float | None] | None:
        """Each part's mean reward in a step that asked `rows`, for the journal; None where nothing waits for it.

        totals: (members, rows), NaN where there is no reward.
        """
        if not self.by_reward:
            return None
        asked = [str(row[COLUMN]) for row in rows]
        return {
            name: _mean(totals[:, [other == name for other in asked]])
            for name in dict.fromkeys(asked)
        }

    def _draw(self, part: Part, count: int, start: int) -> list[int]:
        """`count` of the part's rows in random order, none twice before all were drawn: the first steps of Fisher and Yates'."""
        size, moved, drawn = len(self._where[part.name]), dict[int, int](), []
        for n in range(count):
            at = n % size
            if at == 0:
                moved = {}
            other = at + mix(start + n) % (size - at)
            drawn.append(moved.get(other, other))
            moved[other] = moved.get(at, at)
        return drawn


@dataclass(frozen=True)
class ForTask:
    """A reward function for the rows of one task; for all others it gives None. What it logs is named after the task."""

    function: RewardFunc
    task: str

    @property
    def __name__(self) -> str:
        return f"{self.task}/{reward_name(self.function)}"

    def __call__(
        self,
        task: Sequence[str],
        completions: Sequence[Any],
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> Any:
        mine = [i for i, name in enumerate(task) if name == self.task]
        if not mine:
            return [None] * len(task)
        state = (
            {"trainer_state": columns.pop("trainer_state")} if "trainer_state" in columns else {}
        )
        lists = columns | {"task": task, "completions": completions}
        own = {name: [values[i] for i in mine] for name, values in lists.items()} | state
        if log_extra:
            own["log_extra"] = lambda name, values: log_extra(
                f"{self.task}/{name}", _spread(values, mine, len(task))
            )
        if log_metric:
            own["log_metric"] = lambda name, value: log_metric(f"{self.task}/{name}", value)
        returned = self.function(**accepted(self.function, own))
        return (
            self._awaited(returned, mine, len(task))
            if inspect.isawaitable(returned)
            else self._all(returned, mine, len(task))
        )

    async def _awaited(self, returned: Awaitable[Any], mine: list[int], size: int) -> Any:
        return self._all(await returned, mine, size)

    def _all(self, returned: Any, mine: list[int], size: int) -> Any:
        """`returned` at its places among all; what is no list goes on as it is, to be refused with its name."""
        if not is_list(returned):
            return returned
        if len(returned) != len(mine):
            raise ValueError(
                f"{len(returned)} rewards for the {len(mine)} completions of {self.task}; it must return one each"
            )
        return Grades(
            _spread(returned, mine, size), returned.overran if isinstance(returned, Grades) else 0
        )


def shares(weights: Sequence[float], size: int, start: float) -> list[int]:
    """`size` dealt out by `weights`: systematic sampling from a random `start` in [0, 1) (Madow & Madow 1944)."""
    whole = math.fsum(weights)
    ends = [
        math.floor(size * math.fsum(weights[: n + 1]) / whole + start)
        for n in range(len(weights) - 1)
    ] + [size]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


def _checked(part: Part) -> list[Row]:
    rows = rows_of(part.rows, f"datasets: {part.name}")
    if COLUMN in rows[0]:
        raise DataError(
            f"datasets: {part.name}: has a column {COLUMN!r}, which a mixture needs for itself; rename it"
        )
    for function in part.reward_funcs:
        check_parameters(function, [name for name in rows[0] if name not in NOT_PASSED])
    return rows


def _reached(part: Part, previous: Part | None, history: Sequence[Earned]) -> bool:
    if part.from_reward is None or previous is None:
        return True
    rewards = [earned.get(previous.name) for earned in history]
    return any(reward is not None and reward >= part.from_reward for reward in rewards)


def _spread(values: Sequence[Any], mine: Sequence[int], size: int) -> list[Any]:
    spread: list[Any] = [None] * size
    for i, value in zip(mine, values, strict=True):
        spread[i] = value
    return spread


def _mean(rewards: NDArray[np.float64]) -> float | None:
    there = rewards[~np.isnan(rewards)]
    return mean(there) if there.size else None
