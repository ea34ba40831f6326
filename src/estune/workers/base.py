"""The interface of workers, and `Worker`, an engine with the θ that it reads."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from estune.common.resources import release_freed_memory
from estune.common.types import (
    Completion,
    ExpertCounts,
    Prompt,
    Sampling,
    ThetaUpdate,
    Unperturbed,
    Variant,
)
from estune.engines.base import Engine
from estune.errors import DataError, EstuneError
from estune.theta.theta import Theta


@dataclass(frozen=True)
class Work:
    """What one worker did for a member.

    worker: 1, 2, …
    load, generate: seconds.
    experts: the tokens that each expert served, if the model has experts and the engine counts.
    ended: when the result arrived, by the receiving process's `perf_counter`.
    """

    worker: int
    load: float
    generate: float
    experts: ExpertCounts = field(default_factory=list)
    ended: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Evaluation:
    """The completions of the member at `index`, and the work of each worker that took part."""

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

        Without `sampling`, each prompt gets one greedy completion. With it, each prompt gets
        `sampling.n` completions: first all those of the first prompt, then of the second, and so
        on. While no member finishes, None is yielded now and then, so that the caller can stop.
        """


class Workers(Evaluator, Protocol):
    """Evaluate members, and keep every replica of θ equal.

    The methods that matter only with several replicas or launched processes do nothing by default.
    """

    def update(self, update: ThetaUpdate) -> None:
        """Apply an update to every replica of θ."""

    def status(self) -> Status:
        """Return how many workers are alive and how many members are in flight now."""

    def verify(self, digest: str) -> None:
        """Compare each replica's digest with the trainer's; name and rebuild one that differs."""
        return None

    def serve(self) -> None:
        """In a launched process that does not lead: follow the leader's commands until it ends."""
        return None

    def release(self) -> None:
        """In the launched process that leads: end `serve` in the others."""
        return None


class Worker:
    """An engine and the θ that it reads. All kinds of workers consist of these.

    Raises:
        EngineError: the engine does not hold the base model's weights.
    """

    def __init__(self, theta: Theta, engine: Engine) -> None:
        self._theta = theta
        self._engine = engine
        self._loaded: Variant | None = None
        self._first_checked = False  # whether the first member's weights were compared with θ
        if theta.at(0):
            self._check_base()

    def evaluate_one(
        self,
        member: Variant,
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> tuple[list[Completion], float, float, ExpertCounts]:
        """Return the completions, the seconds for loading and for generating, and experts' loads.

        Raises:
            EngineError: the engine does not hold the member's weights after loading them.
        """
        started = time.perf_counter()
        self._load(member)
        loaded = time.perf_counter()
        completions = self._engine.generate(
            prompts, max_completion_length=max_completion_length, sampling=sampling
        )
        seconds = loaded - started, time.perf_counter() - loaded
        return completions, *seconds, self._engine.expert_counts()

    def check_lengths(self, datasets: Mapping[str, Sequence[Prompt]]) -> None:
        """Check that each prompt has tokens and leaves room for a completion.

        Raises:
            DataError: a prompt has no tokens or leaves no room; its dataset and row are named.
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
        if not self._first_checked:
            self._engine.check(self._theta, member)
            release_freed_memory()
            self._first_checked = True

    def _check_base(self) -> None:
        """Check that the engine was built with the base model's weights."""
        try:
            self._engine.check(self._theta, Unperturbed(0))
            release_freed_memory()
        except EstuneError:
            if self._theta.at(0):
                raise
            # θ was updated during the check, so it was compared with other weights. That proves
            # nothing against the engine, and the first member will be checked anyway.
