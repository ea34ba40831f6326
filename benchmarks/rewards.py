"""What rewards cost beside generation, and what one that hangs costs.

    python -m benchmarks.rewards [--json]

    judge_over_generation   a step in which 30 members × 200 completions take 2 s each to generate and an async judge 10 ms a
                            completion ÷ the generation alone; at most 1.02
    plain_over_generation   the same with a plain function that sleeps 10 ms a completion in turn: the last member's 2 s are left
    hang_over_bound         seconds that a reward took which hangs on 8 of 40 completions, in 4 scorers ÷ ⌈8 ÷ 4⌉ × reward_timeout,
                            once the function is called a completion at a time; beside it generation goes on

Generation is slept through: what is measured is what rewards add to it.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.common import options, show
from estune.common.types import Completion, Prompt, Unperturbed, Variant
from estune.config import ESConfig
from estune.monitor.timeline import Timeline
from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions
from estune.run.step_evaluation import StepEvaluation
from estune.workers.base import Evaluation, Status

PROMPTS, MEMBER_SECONDS, PAUSE = 200, 2.0, 0.01
HANGING, OTHERS, SCORERS, TIMEOUT = 8, 32, 4, 3.0


async def judge(completions):  # type: ignore[no-untyped-def]
    await asyncio.gather(*(asyncio.sleep(PAUSE) for _ in completions))
    return [float(len(text)) for text in completions]


def plain(completions):  # type: ignore[no-untyped-def]
    for _ in completions:
        time.sleep(PAUSE)
    return [float(len(text)) for text in completions]


def hangs(completions):  # type: ignore[no-untyped-def]
    if "hang" in completions:
        time.sleep(1e6)
    return [1.0] * len(completions)


def main() -> None:
    asked = options(__doc__)
    members = 3 if asked.quick else 30
    show(
        {
            "judge_over_generation": _step(judge, members) / (members * MEMBER_SECONDS),
            "plain_over_generation": _step(plain, members) / (members * MEMBER_SECONDS),
            "hang_over_bound": _hang() / (-(-HANGING // SCORERS) * TIMEOUT),
        },
        asked.json,
    )


def _step(function, members: int) -> float:  # type: ignore[no-untyped-def]
    """Seconds of a step's generation and rewards."""
    rewards = RewardFunctions([function])
    rows = [{"prompt": str(i)} for i in range(PROMPTS)]
    completions = [Completion("x" * 200, list(range(100)), False)] * PROMPTS
    rewards.score(rows[:1], completions[:1])  # scorers start once a run
    workers: Any = _PacedWorkers(completions)
    evaluate = StepEvaluation(
        workers, rewards, rows, ESConfig(), None, Timeline(), tick=lambda evaluation: None
    )
    evaluate([Unperturbed(0)] * members)
    rewards.close()
    return evaluate.seconds


class _PacedWorkers:
    """Evaluates a member every MEMBER_SECONDS."""

    def __init__(self, completions: list[Completion]) -> None:
        self._completions = completions

    def status(self) -> Status:
        return Status(1, 1, 0)

    def evaluate(
        self, variants: Sequence[Variant], prompts: Sequence[Prompt], **settings: Any
    ) -> Iterator[Evaluation]:
        started = time.perf_counter()
        for index in range(len(variants)):
            time.sleep(max(0.0, started + (index + 1) * MEMBER_SECONDS - time.perf_counter()))
            yield Evaluation(index, self._completions)


def _hang() -> float:
    """Seconds that it takes to score a member with completions at which the function hangs, for the second time."""
    rewards = RewardFunctions([hangs], limits=RewardLimits(SCORERS, TIMEOUT))
    texts = (["hang"] + ["fine"] * (OTHERS // HANGING)) * HANGING
    rows, completions = (
        [{"prompt": ""}] * len(texts),
        [Completion(text, [1], False) for text in texts],
    )
    rewards.score(rows, completions, first=False)
    started = time.perf_counter()
    rewards.score(rows, completions, first=False)
    seconds = time.perf_counter() - started
    rewards.close()
    return seconds


if __name__ == "__main__":
    main()
