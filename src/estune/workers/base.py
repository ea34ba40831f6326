"""The interface to workers, which evaluate members: in this process, or in many on a cluster."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from estune.common.resources import release_freed_memory
from estune.common.types import Completion, Prompt, Sampling, ThetaUpdate, Unperturbed, Variant
from estune.engines.base import Engine
from estune.errors import DataError, EstuneError
from estune.theta.theta import Theta


@dataclass(frozen=True)
class Work:
    """What one worker did for a member.

    worker: 1, 2, …
    load, generate: seconds.
    ended: when the result arrived, by the receiving process's `perf_counter`.
    """

    worker: int
    load: float
    generate: float
    ended: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Evaluation:
    """The completions of the member `index`, and the work of each worker that took part."""

    index: int
    completions: list[Completion]
    work: tuple[Work, ...] = ()

    @property
    def load_seconds(self) -> float:
        return sum(one.load for one in self.work)

    @property
    def generate_seconds(self) -> float:
        return sum(one.generate for one in self.work)


@dataclass(frozen=True)
class Status:
    """Workers alive, workers requested, members in flight."""

    alive: int
    requested: int
    in_flight: int


class Evaluator(Protocol):
    """Generates the completions of members."""

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        """Yield each member's completions of all prompts, in the order in which they finish.

        Without `sampling` there is one greedy completion per prompt; with it, `sampling.n` of the
        first prompt, then of the next. While nothing finishes, None is yielded now and then, so
        that the caller can stop.
        """


class Workers(Evaluator, Protocol):
    """Evaluate members, and keep every replica of θ equal."""

    def update(self, update: ThetaUpdate) -> None:
        """Apply an update to every replica."""

    def verify(self, digest: str) -> None:
        """Compare every replica's digest with the trainer's; name and rebuild one that differs."""

    def serve(self) -> None:
        """In a process that does not lead: follow the leader's commands until it releases us."""

    def release(self) -> None:
        """In the leading process: end `serve` in the others."""

    def status(self) -> Status:
        """Return how many workers are alive and members in flight now."""


class Worker:
    """An engine and the θ that it reads; every kind of workers is made of these.

    Raises:
        EngineError: the engine does not hold the base model's weights.
    """

    def __init__(self, theta: Theta, engine: Engine) -> None:
        self._theta = theta
        self._engine = engine
        self._loaded: Variant | None = None
        self._checked = False
        if theta.at(0):
            self._check_base()

    def evaluate_one(
        self,
        member: Variant,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> tuple[list[Completion], float, float]:
        """Return the member's completions, and the seconds of loading and of generating.

        Raises:
            EngineError: the engine did not take the member's weights.
        """
        started = time.perf_counter()
        self._load(member)
        loaded = time.perf_counter()
        completions = self._engine.generate(
            prompts, max_completion_length=max_completion_length, sampling=sampling
        )
        return completions, loaded - started, time.perf_counter() - loaded

    def check_lengths(self, datasets: Mapping[str, Sequence[Prompt]]) -> None:
        """Check that each prompt has tokens and leaves room for a completion.

        Raises:
            DataError: one does not; its dataset and row are named.
        """
        limit = self._engine.context_length
        for name, prompts in datasets.items():
            lengths = self._engine.prompt_lengths(prompts)
            if 0 in lengths:
                raise DataError(
                    f"{name}: row {lengths.index(0)}: its prompt has no tokens; give it some text, "
                    "or drop the row"
                )
            longest = max(lengths, default=0)
            if longest >= limit:
                raise DataError(
                    f"{name}: row {lengths.index(longest)}: its prompt has {longest} tokens, which "
                    f"leaves no room for a completion in the model's context of {limit}; "
                    "shorten it or drop the row"
                )

    def _load(self, member: Variant) -> None:
        if member != self._loaded:
            self._loaded = None
            self._engine.load(self._theta, member)
            self._loaded = member
        if not self._checked:
            self._engine.check(self._theta, member)
            release_freed_memory()
            self._checked = True

    def _check_base(self) -> None:
        try:
            self._engine.check(self._theta, Unperturbed(0))
            release_freed_memory()
        except EstuneError:
            # If θ was updated during the check, the mismatch means nothing: the first member is
            # checked instead.
            if self._theta.at(0):
                raise
