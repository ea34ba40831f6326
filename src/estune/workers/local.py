"""One engine in this process, attached to this process's centre."""

import time
from collections.abc import Iterator, Sequence

from estune.center import Center
from estune.engines.base import Engine
from estune.member import Completion, Member, Prompt
from estune.workers.base import Evaluation


class Worker:
    """An engine and the centre that it reads: where a member is loaded and answers. Every kind of workers is made of these.

    Raises:
        EngineError: the engine does not hold the base model's weights, or did not take the first member's.
    """

    def __init__(self, center: Center, engine: Engine) -> None:
        self._center = center
        self._engine = engine
        self._held: Member | None = None
        self._checked = False
        if center.version == 0:
            engine.check(center, Member(0, 1, 0.0, "iid", 0))

    def answer(self, member: Member, prompts: Sequence[Prompt], *, max_completion_length: int) -> tuple[list[Completion], float, float]:
        """The member's completions, and the seconds that loading and generating took."""
        started = time.perf_counter()
        if member != self._held:
            self._held = None
            self._engine.load(self._center, member)
            self._held = member
        if not self._checked:
            self._engine.check(self._center, member)
            self._checked = True
        loaded = time.perf_counter()
        completions = self._engine.generate(prompts, max_completion_length=max_completion_length)
        return completions, loaded - started, time.perf_counter() - loaded


class LocalWorkers:
    """Evaluates members one after the other."""

    def __init__(self, center: Center, engine: Engine) -> None:
        self._center = center
        self._worker = Worker(center, engine)

    def evaluate(self, members: Sequence[Member], prompts: Sequence[Prompt], *, max_completion_length: int) -> Iterator[Evaluation]:
        for index, member in enumerate(members):
            yield Evaluation(index, *self._worker.answer(member, prompts, max_completion_length=max_completion_length))

    def update(self, seeds: list[int], coefficients: list[float], *, noise: str, version: int) -> None:
        self._center.update(seeds, coefficients, noise=noise, version=version)
