"""The seam to whoever evaluates members: one engine in this process, or many on a cluster."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from estune.common.resources import give_back
from estune.common.types import Completion, Prompt, Sampling, Unperturbed, Variant
from estune.engines.base import Engine
from estune.errors import DataError, EstuneError
from estune.theta.theta import Theta


@dataclass(frozen=True)
class Work:
    """What a worker (1, 2, …) did for a member: seconds of loading, then of generating; `ended` is when its answer came, by the
    perf_counter of the process that asked."""

    worker: int
    load: float
    generate: float
    ended: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Evaluation:
    """What one member answered, and what that took: from one worker, or in pieces from several."""

    index: int
    completions: list[Completion]
    work: tuple[Work, ...] = ()

    @property
    def load_seconds(self) -> float:
        """Spent on writing weights."""
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
    """Whoever can say what members answer."""

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        """Each member's answers to all prompts, in the order in which they are done; `index` says whose.

        Greedy ones, or with `sampling` n of each prompt, as an engine gives them.

        While others are waited for, None comes now and then, so that the caller may stop.
        """


class Workers(Evaluator, Protocol):
    """Evaluate members of a population, and keep every replica of θ in step."""

    def update(
        self,
        seeds: list[int],
        coefficients: list[float],
        *,
        noise: str,
        version: int,
        decay: float = 0.0,
    ) -> None:
        """Apply one update to θ everywhere; `version` is the one that it starts from, so a repetition does nothing."""

    def verify(self, digest: str) -> None:
        """Compare every replica of θ with the digest of the trainer's; one that differs is named and rebuilt."""

    def serve(self) -> None:
        """In a process that does not lead: do what the leading one says, until it lets go."""

    def release(self) -> None:
        """In the leading process: let the others go."""

    def status(self) -> Status:
        """Who is alive and what is under way, now."""


class Worker:
    """An engine and the centre that it reads. Every kind of workers is made of these.

    Raises:
        EngineError: the engine does not hold the base model's weights, or did not take the first member's.
    """

    def __init__(self, theta: Theta, engine: Engine) -> None:
        self._theta = theta
        self._engine = engine
        self._held: Variant | None = None
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
        """The member's completions, and the seconds that loading and generating took."""
        started = time.perf_counter()
        if member != self._held:
            self._held = None
            self._engine.load(self._theta, member)
            self._held = member
        if not self._checked:
            self._engine.check(self._theta, member)
            give_back()
            self._checked = True
        loaded = time.perf_counter()
        completions = self._engine.generate(
            prompts, max_completion_length=max_completion_length, sampling=sampling
        )
        return completions, loaded - started, time.perf_counter() - loaded

    def _check_base(self) -> None:
        try:
            self._engine.check(self._theta, Unperturbed(0))
            give_back()
        except EstuneError:
            if self._theta.at(0):
                raise  # else a run that others are at moved θ on meanwhile; the first member will be checked

    def check_lengths(self, datasets: Mapping[str, Sequence[Prompt]]) -> None:
        """Raises DataError for a prompt without tokens, or that leaves no room for an answer; `datasets` are named."""
        for name, prompts in datasets.items():
            lengths = self._engine.prompt_lengths(prompts)
            if 0 in lengths:
                raise DataError(
                    f"{name}: row {lengths.index(0)}: its prompt has no tokens; give it some text, or drop the row"
                )
            longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
            if longest is not None and lengths[longest] >= self._engine.context_length:
                raise DataError(
                    f"{name}: row {longest}: its prompt has {lengths[longest]} tokens, which leaves no room for an answer in the "
                    f"model's context of {self._engine.context_length}; shorten it or drop the row"
                )
