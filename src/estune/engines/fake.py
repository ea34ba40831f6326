"""An engine without a language model, for tests of everything around one.

Each prompt has a fixed random direction. The projection of the weights on it sets the length of the
completion, so the reward of a length task responds to θ as with a real model, in microseconds.
"""

import hashlib
import itertools
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from estune.common.types import Completion, ExpertCounts, Prompt, Request, Sampling, Variant
from estune.engines.base import check_weights
from estune.engines.sampling import sample_seeds
from estune.theta.checkpoint import Checkpoint
from estune.theta.theta import Theta

_WEIGHTS = 4096  # the first weights of each parameter are used


class FakeEngine:
    """Holds the weights `names` of a checkpoint in fp32, and completes prompts with letters."""

    def __init__(self, checkpoint: Checkpoint, names: Iterable[str]) -> None:
        self._weights = {name: checkpoint.read(name).float() for name in names}
        self._numbers = itertools.count()
        self._requests: dict[int, Completion] = {}

    @property
    def context_length(self) -> int:
        return 1 << 20

    def read(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def load(self, theta: Theta, variant: Variant) -> None:
        for _ in theta.perturbed(variant, self.read):
            pass

    def check(self, theta: Theta, variant: Variant) -> None:
        check_weights(theta, variant, self.read)

    def expert_counts(self) -> ExpertCounts:
        return []

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        return [len(str(prompt)) for prompt in prompts]

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> list[Completion]:
        flat = torch.cat([w.view(-1)[:_WEIGHTS] for w in self._weights.values()]).numpy()
        completions = []
        for prompt in map(str, prompts):
            length = _length(flat, prompt)
            for extra in _extras(prompt, sampling):
                completions.append(_letters(length + extra, max_completion_length))
        return completions

    def submit(self, request: Request) -> int:
        number = next(self._numbers)
        [self._requests[number]] = self.generate(
            [request.prompt],
            max_completion_length=request.max_completion_length,
            sampling=replace(request.sampling, n=1) if request.sampling else None,
        )
        return number

    def step(self) -> list[tuple[int, Completion]]:
        ended, self._requests = self._requests, {}
        return list(ended.items())

    def abort(self, numbers: Container[int]) -> None:
        for number in [each for each in self._requests if each in numbers]:
            del self._requests[number]


def _length(flat: NDArray[np.float32], prompt: str) -> float:
    """Return the number of letters of the greedy completion."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    direction = generator.standard_normal(flat.size)
    return 20 + 20 * float(direction @ flat) / (1e-9 + float(np.linalg.norm(flat)))


def _extras(prompt: str, sampling: Sampling | None) -> list[float]:
    """Return how many letters longer each completion is than the greedy one."""
    if sampling is None:
        return [0.0]
    seeds = sample_seeds(list(prompt.encode()), sampling)
    normal = [float(np.random.default_rng(seed).standard_normal()) for seed in seeds]
    return [5 * sampling.temperature * value for value in normal]


def _letters(wanted: float, budget: int) -> Completion:
    length = min(budget, max(1, int(wanted)))
    return Completion("x" * length, [1] * length, clipped=length == budget)
