"""One engine in this process, attached to this process's centre."""

import time
from collections.abc import Iterator, Sequence

import torch

from estune.center import Center
from estune.engines.base import Engine
from estune.errors import EngineError
from estune.member import Member, Prompt
from estune.workers.base import Evaluation


class LocalWorkers:
    """Evaluates members one after the other.

    Raises:
        EngineError: the engine does not hold the base model's weights, or did not take the first member's.
    """

    def __init__(self, center: Center, engine: Engine) -> None:
        self._center = center
        self._engine = engine
        self._checked = False
        if center.version == 0:
            _check_held(engine, center, "the base model's")

    def evaluate(self, members: Sequence[Member], prompts: Sequence[Prompt], *, max_completion_length: int) -> Iterator[Evaluation]:
        for index, member in enumerate(members):
            started = time.perf_counter()
            self._engine.load(self._center.perturbed(member, self._engine.destination))
            if not self._checked:
                self._check_taken(member)
            loaded = time.perf_counter()
            completions = self._engine.generate(prompts, max_completion_length=max_completion_length)
            yield Evaluation(index, completions, loaded - started, time.perf_counter() - loaded)

    def update(self, seeds: list[int], coefficients: list[float], *, noise: str, version: int) -> None:
        self._center.update(seeds, coefficients, noise=noise, version=version)

    def _check_taken(self, member: Member) -> None:
        """Read the first member's weights back from the engine and compare."""

        def scratch(name: str) -> torch.Tensor:
            return torch.empty_like(self._engine.read(name))

        for name, _, wanted in self._center.perturbed(member, scratch):
            _compare(self._engine, name, wanted, "the first member's")
        self._checked = True


def _check_held(engine: Engine, center: Center, whose: str) -> None:
    for name, theta in center.theta.items():
        _compare(engine, name, theta, whose)


def _compare(engine: Engine, name: str, wanted: torch.Tensor, whose: str) -> None:
    held = engine.read(name)
    if not torch.equal(held, wanted.to(held.device, held.dtype)):
        raise EngineError(f"the engine does not hold {whose} weights in {name}; its layout differs from the files'")
