"""One engine in each process that `accelerate launch` or `torchrun` started; whoever is free takes the next member.

Rank 0 leads: its trainer asks, scores and writes. The others serve: they wait for what it says, take members by a
shared counter, and apply the same updates. One that fails ends them all, as these launchers have it; the run resumes.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from estune.common.types import (
    Completion,
    Prompt,
    Sampling,
    Variant,
    variant_from_json,
    variant_to_json,
)
from estune.theta.theta import Theta
from estune.workers.base import Evaluation, Status, Work, Worker
from estune.workers.ranks import Ranks

logger = logging.getLogger(__name__)

_POLL = 0.02  # seconds between looks for answers of others


class AccelerateWorkers:
    """Evaluates members in every process.

    Args:
        theta: this node's θ.
        worker: this process's engine.
        ranks: this process's place.
    """

    def __init__(self, theta: Theta, worker: Worker, ranks: Ranks) -> None:
        self._theta, self._worker, self._ranks = theta, worker, ranks
        self._said = 0  # commands so far
        self._waiting = 0  # members of the step that are not answered
        self._elsewhere = theta.version  # version of θ on the other nodes
        ranks.meet("built")  # θ stays at θ₀ until every engine was compared with it

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        self._level()
        drawn = vars(sampling) if sampling else None
        asked = {
            "members": [variant_to_json(member) for member in members],
            "prompts": list(prompts),
        }
        number = self._command("evaluate", **asked, budget=max_completion_length, drawn=drawn)
        waiting = set(range(len(members)))
        self._waiting = len(waiting)
        while (index := self._ranks.next(f"next/{number}")) < len(members):
            waiting.discard(index)
            self._waiting = len(waiting)
            completions, *seconds = self._worker.evaluate_one(
                members[index],
                prompts,
                max_completion_length=max_completion_length,
                sampling=sampling,
            )
            yield Evaluation(index, completions, (Work(1, *seconds),))
            yield from self._arrived(number, waiting)
        while waiting:
            time.sleep(_POLL)
            yield None
            yield from self._arrived(number, waiting)

    def update(
        self,
        seeds: list[int],
        coefficients: list[float],
        *,
        noise: str,
        version: int,
        decay: float = 0.0,
    ) -> None:
        self._level()
        number = self._command(
            "update",
            seeds=seeds,
            coefficients=coefficients,
            noise=noise,
            version=version,
            decay=decay,
        )
        self._theta.update(seeds, coefficients, noise=noise, version=version, decay=decay)
        for node in range(1, self._ranks.nodes):
            self._ranks.hear(f"updated/{number}/{node}")
        self._elsewhere = self._theta.version

    def verify(self, digest: str) -> None:
        number = self._command("verify")
        wrong = [
            node
            for node in range(1, self._ranks.nodes)
            if self._ranks.hear(f"digest/{number}/{node}") != digest
        ]
        if wrong:
            logger.warning(
                "θ on node %s differs from the leader's; it is rebuilt", ", ".join(map(str, wrong))
            )
            self._elsewhere = -1
            self._level()

    def status(self) -> Status:
        return Status(self._ranks.world, self._ranks.world, min(self._ranks.world, self._waiting))

    def serve(self) -> None:
        """What every rank but 0 does: answer and update as the leader says, until it lets go."""
        what = ""
        while what != "release":
            number, self._said = self._said, self._said + 1
            command = self._ranks.hear(f"command/{number}")
            what = command.pop("what")
            if what == "evaluate":
                self._serve_members(number, **command)
            elif what == "update":
                self._serve_update(number, **command)
            elif what == "verify" and self._keeps_another:
                self._ranks.say(f"digest/{number}/{self._ranks.node}", self._theta.digest())
            elif what == "spread" and self._keeps_another:
                self._ranks.spread(self._theta, f"spread/{number}")

    def release(self) -> None:
        """Let the others go on with their own programs."""
        self._command("release")

    @property
    def _keeps_another(self) -> bool:
        """Whether this process has the θ of a node that is not the leader's."""
        return self._ranks.keeps and not self._ranks.leads

    def _command(self, what: str, **settings: Any) -> int:
        """Say that all are to do `what`; returns the command's number."""
        number, self._said = self._said, self._said + 1
        if self._ranks.world > 1:
            self._ranks.say(f"command/{number}", {"what": what} | settings)
        return number

    def _level(self) -> None:
        """Bring the other nodes to the leader's θ, where they have another: after a resume, or when one was damaged."""
        if self._elsewhere != self._theta.version:
            number = self._command("spread")
            if self._ranks.nodes > 1:
                self._ranks.spread(self._theta, f"spread/{number}")
            self._elsewhere = self._theta.version

    def _arrived(self, number: int, waiting: set[int]) -> Iterator[Evaluation]:
        """The members that others have answered meanwhile."""
        for index in sorted(waiting):
            key = f"answer/{number}/{index}"
            if self._ranks.world > 1 and self._ranks.heard(key):
                answer = self._ranks.hear(key)
                self._ranks.forget(key)
                waiting.discard(index)
                self._waiting = len(waiting)
                completions = [Completion(**row) for row in answer["completions"]]
                yield Evaluation(
                    index, completions, (Work(answer["rank"] + 1, *answer["seconds"]),)
                )

    def _serve_members(
        self,
        number: int,
        members: list[dict[str, Any]],
        prompts: list[Prompt],
        budget: int,
        drawn: dict[str, Any] | None,
    ) -> None:
        sampling = Sampling(**drawn) if drawn else None
        while (index := self._ranks.next(f"next/{number}")) < len(members):
            completions, *seconds = self._worker.evaluate_one(
                variant_from_json(members[index]),
                prompts,
                max_completion_length=budget,
                sampling=sampling,
            )
            answer = {
                "completions": [vars(row) for row in completions],
                "seconds": seconds,
                "rank": self._ranks.rank,
            }
            self._ranks.say(f"answer/{number}/{index}", answer)

    def _serve_update(
        self,
        number: int,
        seeds: list[int],
        coefficients: list[float],
        noise: str,
        version: int,
        decay: float,
    ) -> None:
        if self._keeps_another:
            self._theta.update(seeds, coefficients, noise=noise, version=version, decay=decay)
            self._ranks.say(f"updated/{number}/{self._ranks.node}", True)
