"""Measure what rewards add to generation, and what a reward function that hangs costs.

    python -m benchmarks.rewards [--json]

    judge_over_generation   a step of 30 members × 200 completions, with an async judge that takes
                            10 ms per completion ÷ generation alone, at 2 s per member; at most 1.02
    plain_over_generation   the same with a plain function that sleeps 10 ms for each completion in
                            turn; the last member's 2 s cannot overlap with generation
    hang_over_bound         scoring 40 completions in 4 processes, with a function that hangs on 8
                            of them ÷ ⌈8 ÷ 4⌉ × reward_timeout; generation continues meanwhile

Generation is a sleep, because only what rewards add to it is measured.
"""

import asyncio
import math
import time
from typing import Any

from benchmarks.common import options, show, timed
from estune.common.types import Completion
from estune.rewards.processes.pool import RewardLimits
from estune.rewards.scoring import RewardFunctions

PROMPTS = 200
MEMBER_SECONDS = 2.0
PAUSE = 0.01
HANGING = 8
OTHERS = 32
PROCESSES = 4
TIMEOUT = 3.0


async def judge(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.gather(*(asyncio.sleep(PAUSE) for _ in completions))
    return [float(len(text)) for text in completions]


def plain(completions: list[str], **columns: Any) -> list[float]:
    for _ in completions:
        time.sleep(PAUSE)
    return [float(len(text)) for text in completions]


def hangs(completions: list[str], **columns: Any) -> list[float]:
    if "hang" in completions:
        time.sleep(1e6)
    return [1.0] * len(completions)


def main() -> None:
    given = options(__doc__)
    members = 3 if given.quick else 30
    generation = members * MEMBER_SECONDS
    bound = math.ceil(HANGING / PROCESSES) * TIMEOUT
    figures = {
        "judge_over_generation": step_seconds(judge, members) / generation,
        "plain_over_generation": step_seconds(plain, members) / generation,
        "hang_over_bound": hanging_seconds() / bound,
    }
    show(figures, given.json)


def step_seconds(function: Any, members: int) -> float:
    """Return the seconds to generate and score all members of a step."""
    rewards = RewardFunctions([function])
    rows = [{"prompt": str(number)} for number in range(PROMPTS)]
    completions = [Completion("x" * 200, list(range(100)), False)] * PROMPTS
    rewards.score(
        rows[:1], completions[:1]
    )  # starts the reward processes, which happens once per run
    started = time.perf_counter()
    pending = []
    for number in range(1, members + 1):
        time.sleep(max(0.0, started + number * MEMBER_SECONDS - time.perf_counter()))
        pending.append(rewards.submit(rows, completions))
    for member in pending:
        member.result()
    seconds = time.perf_counter() - started
    rewards.close()
    return seconds


def hanging_seconds() -> float:
    """Return the seconds of scoring, after a first time that makes calls of one completion each."""
    rewards = RewardFunctions([hangs], limits=RewardLimits(PROCESSES, TIMEOUT))
    texts = (["hang"] + ["fine"] * (OTHERS // HANGING)) * HANGING
    rows = [{"prompt": ""}] * len(texts)
    completions = [Completion(text, [1], False) for text in texts]
    rewards.score(rows, completions, first=False)
    seconds = timed(lambda: rewards.score(rows, completions, first=False))
    rewards.close()
    return seconds


if __name__ == "__main__":
    main()
