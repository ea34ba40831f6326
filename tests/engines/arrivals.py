"""Requests that are submitted to an engine a few at a time."""

import itertools

from estune.common.types import Completion, Request
from estune.engines.base import Engine

SHARED = "the capital of the red dog was in a blue sky " * 5  # which prompts begin with together


def arriving(one: Engine, prompts, arrivals, budgets) -> list[Completion]:
    """Submit some prompts before each step, and return the completions in the prompts' order."""
    waiting = iter(zip(prompts, budgets, strict=True))
    numbers: list[int] = []
    done: dict[int, Completion] = {}
    for count in itertools.chain(arrivals, itertools.repeat(0)):
        for prompt, budget in itertools.islice(waiting, count):
            numbers.append(one.submit(Request(prompt, budget)))
        done.update(one.step())
        if len(done) == len(prompts):
            return [done[number] for number in numbers]
    raise AssertionError
