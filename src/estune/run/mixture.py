"""Several tasks in one run: each one's share of a batch, and the steps in which it takes part.

The rows of all tasks form one training set, with the task's name in the column `task`. The rows of
a step depend only on the seed, the step and, for `from_reward`, on the rewards of earlier steps.
Those are in the journal, so a resumed run draws the same rows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from estune.common.moments import known, mean
from estune.common.types import Row
from estune.config import ESConfig
from estune.errors import ConfigError, DataError
from estune.noise.seeds import mix
from estune.rewards.signature import NOT_PASSED, RewardFunc, check_parameters
from estune.run.task_reward import TaskReward
from estune.tasks.rows import rows_of

COLUMN = "task"  # names the part that a row belongs to
_DRAWS = 0x9FB21C651E98DF25  # separates the random numbers drawn here from the members' seeds
Earned = Mapping[str, float | None]  # active part → its mean reward in a step


@dataclass(frozen=True)
class Part:
    """One task of a mixture.

    rows: mappings with a `prompt` and the columns that the reward functions need.
    reward_funcs: score only these rows; empty if the run's reward functions score all rows.
    weight: its share of a batch, relative to the other active parts.
    from_step, until_step: the first and last step in which it is active.
    from_reward: it joins after a step in which the part before it earned at least this on average.

    Raises:
        ConfigError: a weight or a step is out of range.
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
        last = math.inf if self.until_step is None else self.until_step
        if not 1 <= self.from_step <= last:
            raise ConfigError(
                f"datasets: {self.name}: from_step must be at least 1 and not after until_step; "
                f"it is {self.from_step}"
            )

    def includes(self, step: int) -> bool:
        """Whether `step` is between from_step and until_step."""
        return self.from_step <= step and (self.until_step is None or step <= self.until_step)

    def joined(self, previous: "Part | None", history: Sequence[Earned]) -> bool:
        """Whether the part before it has earned from_reward in some step of `history`."""
        if self.from_reward is None or previous is None:
            return True
        rewards = [earned.get(previous.name) for earned in history]
        return any(reward is not None and reward >= self.from_reward for reward in rewards)


class Mixture:
    """Parts to train on together. Iterating yields all rows, each with its part's name in `task`.

    A column that only some parts have is None in the rows of the others.

    Raises:
        ConfigError: no parts, two parts with one name, or a first part with from_reward.
        DataError: a part's rows are not valid rows, or have a column `task` of their own.
        RewardError: a part's reward function needs a column that the part does not have.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        names = [part.name for part in parts]
        if not parts or len(set(names)) < len(names):
            raise ConfigError(
                "datasets: give at least one, and each a name (label) of its own; "
                f"they are {', '.join(names) or 'none'}"
            )
        if parts[0].from_reward is not None:
            raise ConfigError(
                f"datasets: {names[0]}: is the first, so from_reward has no entry before it to use"
            )
        self.parts = list(parts)
        rows_of_part = {part.name: _checked(part) for part in parts}
        columns = list(dict.fromkeys(name for rows in rows_of_part.values() for name in rows[0]))
        self._rows: list[Row] = []
        self._indices: dict[str, range] = {}
        for name, rows in rows_of_part.items():
            start = len(self._rows)
            for row in rows:
                self._rows.append({column: row.get(column) for column in columns} | {COLUMN: name})
            self._indices[name] = range(start, len(self._rows))

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def reward_funcs(self) -> list[RewardFunc]:
        """The parts' reward functions, each limited to the rows of its part."""
        return [
            TaskReward(function, part.name) for part in self.parts for function in part.reward_funcs
        ]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """What besides the rows decides which rows a step uses; part of the data's fingerprint."""
        settings = []
        for part in self.parts:
            values = vars(part) | {"rows": len(part.rows)}
            del values["reward_funcs"]
            settings.append(values)
        return settings

    @property
    def by_reward(self) -> bool:
        """Whether some part waits for a reward."""
        return any(part.from_reward is not None for part in self.parts)

    def check(self, config: ESConfig) -> None:
        """Check the mixture against a run's settings.

        Raises:
            ConfigError: weights without a batch_size, or a step in which no part may be active.
        """
        if config.batch_size is None and len({part.weight for part in self.parts}) > 1:
            raise ConfigError(
                "batch_size: weights are shares of a batch; "
                "give one, or the same weight to all datasets"
            )
        scheduled = [part for part in self.parts if part.from_reward is None]
        ends = [part.until_step + 1 for part in scheduled if part.until_step is not None]
        for step in sorted({1, *ends}):
            if step <= config.max_steps and not any(part.includes(step) for part in scheduled):
                raise ConfigError(
                    f"datasets: no dataset covers step {step}; "
                    "raise an until_step, or lower a from_step"
                )

    def active(self, step: int, history: Sequence[Earned]) -> list[Part]:
        """Return the active parts of `step`; `history` holds the rewards of all earlier steps."""
        previous = [None, *self.parts[:-1]]
        return [
            part
            for part, before in zip(self.parts, previous, strict=True)
            if part.includes(step) and part.joined(before, history)
        ]

    def batch(self, config: ESConfig, step: int, history: Sequence[Earned]) -> list[int]:
        """Return the indices of the rows that every member of `step` gets.

        Without batch_size they are all rows of the active parts. With it, a part whose share is p
        gets ⌊p·batch_size⌋ or ⌈p·batch_size⌉ of its rows, and p·batch_size on average.
        """
        parts = self.active(step, history)
        if config.batch_size is None:
            return [row for part in parts for row in self._indices[part.name]]
        start = mix(mix(config.seed ^ _DRAWS) + step)
        fraction = (start >> 11) / 2**53
        counts = shares([part.weight for part in parts], config.batch_size, fraction)
        batch: list[int] = []
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            indices = self._indices[part.name]
            batch += [indices[i] for i in _drawn(len(indices), count, mix(start + number))]
        return batch

    def earned(
        self, rows: Sequence[Row], totals: NDArray[np.float64]
    ) -> dict[str, float | None] | None:
        """Return each part's mean reward in a step, for the journal; None if no part waits for it.

        Args:
            rows: the step's batch.
            totals: the rewards, shape (members, rows), NaN where there is none.
        """
        if not self.by_reward:
            return None
        names = np.array([row[COLUMN] for row in rows])
        return {name: _mean(totals[:, names == name]) for name in dict.fromkeys(names.tolist())}


def shares(weights: Sequence[float], size: int, start: float) -> list[int]:
    """Divide `size` by `weights`: systematic sampling (Madow & Madow 1944).

    `start` is a random number in [0, 1).
    """
    whole = math.fsum(weights)
    ends = [
        math.floor(size * math.fsum(weights[: n + 1]) / whole + start)
        for n in range(len(weights) - 1)
    ]
    return [end - begin for begin, end in pairwise([0, *ends, size])]


def _drawn(size: int, count: int, start: int) -> list[int]:
    """Return `count` of the numbers below `size` in random order, none twice until all were drawn.

    These are the first steps of the Fisher-Yates shuffle; `moved` holds the entries it has swapped.
    """
    drawn: list[int] = []
    moved: dict[int, int] = {}
    for n in range(count):
        at = n % size
        if at == 0:
            moved = {}
        other = at + mix(start + n) % (size - at)
        drawn.append(moved.get(other, other))
        moved[other] = moved.get(at, at)
    return drawn


def _checked(part: Part) -> list[Row]:
    rows = rows_of(part.rows, f"datasets: {part.name}")
    if COLUMN in rows[0]:
        raise DataError(
            f"datasets: {part.name}: has a column {COLUMN!r}, which mixtures use; rename it"
        )
    for function in part.reward_funcs:
        check_parameters(function, [name for name in rows[0] if name not in NOT_PASSED])
    return rows


def _mean(rewards: NDArray[np.float64]) -> float | None:
    present = known(rewards)
    return mean(present) if present.size else None
