"""Several tasks in one run: each has a share of the batch, and steps in which it is active.

The rows of all tasks form one training set, with the task's name in the column `task`. Which rows a
step uses depends only on the seed, the step and, for `from_reward`, the rewards of earlier steps.
The journal has those rewards, so a resumed run draws the same rows.
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

COLUMN = "task"  # holds the name of the part that a row belongs to
_DRAWS = 0x9FB21C651E98DF25  # makes the random numbers drawn here differ from the members' seeds
Earned = Mapping[str, float | None]  # active part → its mean reward in a step


@dataclass(frozen=True)
class Part:
    """One task of a mixture.

    rows: mappings with a `prompt` and the columns that the reward functions need.
    reward_funcs: score only these rows; empty if the run's reward functions score all rows.
    weight: its share of a batch, relative to the other active parts.
    from_step, until_step: the first and last step in which it is active.
    from_reward: it also waits for a step in which the mean reward of the part before it was at
        least this.

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
        """Whether the mean reward of `previous` reached from_reward in some step of `history`."""
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
                "datasets: give at least one, each with its own name (label); "
                f"they are {', '.join(names) or 'none'}"
            )
        if parts[0].from_reward is not None:
            raise ConfigError(
                f"datasets: {names[0]}: from_reward waits for the dataset before it, "
                "but this one is the first; leave it out"
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
        """The settings that decide which rows a step uses, as part of the data's fingerprint."""
        settings = []
        for part in self.parts:
            values = vars(part) | {"rows": len(part.rows)}
            del values["reward_funcs"]
            settings.append(values)
        return settings

    @property
    def waits_for_rewards(self) -> bool:
        """Whether any part has from_reward."""
        return any(part.from_reward is not None for part in self.parts)

    def check(self, config: ESConfig) -> None:
        """Check the mixture against a run's settings.

        Raises:
            ConfigError: weights differ but there is no batch_size; or in some step no part may be
                active.
        """
        if config.batch_size is None and len({part.weight for part in self.parts}) > 1:
            raise ConfigError(
                "batch_size: weights are shares of a batch; "
                "set batch_size, or give all datasets the same weight"
            )
        # Parts with from_reward may never become active, so the others must cover all steps. The
        # first step that they miss, if any, is step 1 or follows an until_step.
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
        """Return each part's mean reward in a step; None if no part waits for rewards.

        Args:
            rows: the step's batch.
            totals: the rewards, shape (members, rows); NaN means none.
        """
        if not self.waits_for_rewards:
            return None
        names = np.array([row[COLUMN] for row in rows])
        return {name: _mean(totals[:, names == name]) for name in dict.fromkeys(names.tolist())}


def shares(weights: Sequence[float], size: int, start: float) -> list[int]:
    """Divide `size` into whole numbers in proportion to `weights`.

    `start`, a random number in [0, 1), decides which shares are rounded up. Over many draws each
    share is exact on average: this is systematic sampling (Madow & Madow 1944).
    """
    whole = math.fsum(weights)
    ends = [
        math.floor(size * math.fsum(weights[: n + 1]) / whole + start)
        for n in range(len(weights) - 1)
    ]
    return [end - begin for begin, end in pairwise([0, *ends, size])]


def _drawn(size: int, count: int, start: int) -> list[int]:
    """Draw `count` of the numbers below `size`; none repeats before all of them have been drawn.

    Each round is a Fisher-Yates shuffle. Only the entries that it has swapped are stored, because
    a round is rarely completed.
    """
    drawn: list[int] = []
    swapped: dict[int, int] = {}
    for n in range(count):
        position = n % size
        if position == 0:  # a new round
            swapped = {}
        other = position + mix(start + n) % (size - position)
        drawn.append(swapped.get(other, other))
        swapped[other] = swapped.get(position, position)
    return drawn


def _checked(part: Part) -> list[Row]:
    rows = rows_of(part.rows, f"datasets: {part.name}")
    if COLUMN in rows[0]:
        raise DataError(
            f"datasets: {part.name}: has a column {COLUMN!r}, which mixtures add; rename it"
        )
    for function in part.reward_funcs:
        check_parameters(function, [name for name in rows[0] if name not in NOT_PASSED])
    return rows


def _mean(rewards: NDArray[np.float64]) -> float | None:
    present = known(rewards)
    return mean(present) if present.size else None
