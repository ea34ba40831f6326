"""A reward function that scores only the rows of one task of a mixture."""

import inspect
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from estune.rewards.marks import Grades
from estune.rewards.returned_values import is_list
from estune.rewards.signature import RewardFunc, accepted, reward_name


@dataclass(frozen=True)
class TaskReward:
    """A reward function for the rows of `task`; other rows get None.

    The names under which it logs values begin with the task's name.
    """

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
        own = [i for i, name in enumerate(task) if name == self.task]
        size = len(task)
        if not own:
            return [None] * size
        keywords: dict[str, Any] = {}
        if "trainer_state" in columns:
            keywords["trainer_state"] = columns.pop("trainer_state")
        for name, values in (columns | {"task": task, "completions": completions}).items():
            keywords[name] = [values[i] for i in own]
        if log_extra:
            keywords["log_extra"] = lambda name, values: log_extra(
                f"{self.task}/{name}", _spread(values, own, size)
            )
        if log_metric:
            keywords["log_metric"] = lambda name, value: log_metric(f"{self.task}/{name}", value)
        returned = self.function(**accepted(self.function, keywords))
        if inspect.isawaitable(returned):
            return self._awaited(returned, own, size)
        return self._rewards(returned, own, size)

    async def _awaited(self, returned: Awaitable[Any], own: list[int], size: int) -> Any:
        return self._rewards(await returned, own, size)

    def _rewards(self, returned: Any, own: list[int], size: int) -> Any:
        """Return one reward per row. What is not a list stays as it is; the caller refuses it."""
        if not is_list(returned):
            return returned
        if len(returned) != len(own):
            raise ValueError(
                f"returned {len(returned)} rewards for the {len(own)} completions of {self.task}; "
                "it must return one for each"
            )
        overran = returned.overran if isinstance(returned, Grades) else 0
        return Grades(_spread(returned, own, size), overran)


def _spread(values: Sequence[Any], own: Sequence[int], size: int) -> list[Any]:
    """Put the values of the rows `own` into a list of `size` rows; the others get None."""
    spread: list[Any] = [None] * size
    for i, value in zip(own, values, strict=True):
        spread[i] = value
    return spread
