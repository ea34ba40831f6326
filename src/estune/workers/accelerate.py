"""One engine in each process that `accelerate launch` or `torchrun` started.

Rank 0 leads: its trainer asks, scores and writes. The others wait for its commands, take members
by a shared counter, and apply the same updates. If one process fails, the launcher ends them all;
the run can be resumed.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from estune.common.types import (
    Completion,
    Prompt,
    Sampling,
    ThetaUpdate,
    Variant,
    variant_from_json,
    variant_to_json,
)
from estune.theta.theta import Theta
from estune.workers.base import Evaluation, Status, Work, Worker
from estune.workers.ranks import Ranks

logger = logging.getLogger(__name__)

_POLL = 0.02  # seconds between looks for the others' completions


class AccelerateWorkers:
    """Evaluates members in every process.

    Args:
        theta: this node's θ.
        worker: this process's engine.
        ranks: this process among the others.
    """

    def __init__(self, theta: Theta, worker: Worker, ranks: Ranks) -> None:
        self._theta = theta
        self._worker = worker
        self._ranks = ranks
        self._commands = 0  # sent or followed so far
        self._waiting: set[int] = set()  # members of the step that are not finished
        self._version = theta.version  # of θ on the other nodes
        ranks.meet("built")  # no update before every engine was checked against θ₀

    def evaluate(
        self,
        members: Sequence[Variant],
        prompts: Sequence[Prompt],
        *,
        max_completion_length: int,
        sampling: Sampling | None = None,
    ) -> Iterator[Evaluation | None]:
        self._catch_up()
        number = self._command(
            "evaluate",
            members=[variant_to_json(member) for member in members],
            prompts=list(prompts),
            budget=max_completion_length,
            sampling=vars(sampling) if sampling else None,
        )
        self._waiting = set(range(len(members)))
        while (index := self._ranks.next(f"next/{number}")) < len(members):
            self._waiting.discard(index)
            completions, *seconds = self._worker.evaluate_one(
                members[index],
                prompts,
                max_completion_length=max_completion_length,
                sampling=sampling,
            )
            yield Evaluation(index, completions, (Work(1, *seconds),))
            yield from self._arrived(number)
        while self._waiting:
            time.sleep(_POLL)
            yield None
            yield from self._arrived(number)

    def update(self, update: ThetaUpdate) -> None:
        self._catch_up()
        number = self._command("update", **vars(update))
        self._theta.update(update)
        for node in range(1, self._ranks.nodes):
            self._ranks.wait_for(f"updated/{number}/{node}")
        self._version = self._theta.version

    def verify(self, digest: str) -> None:
        number = self._command("verify")
        others = range(1, self._ranks.nodes)
        digests = {node: self._ranks.wait_for(f"digest/{number}/{node}") for node in others}
        if wrong := [str(node) for node, found in digests.items() if found != digest]:
            logger.warning(
                "θ on node %s differs from the leader's; it is rebuilt", ", ".join(wrong)
            )
            self._version = -1
            self._catch_up()

    def status(self) -> Status:
        world = self._ranks.world
        return Status(world, world, min(world, len(self._waiting)))

    def serve(self) -> None:
        """Follow the leader's commands until it releases this process."""
        what = ""
        while what != "release":
            number = self._commands
            self._commands += 1
            command = self._ranks.wait_for(f"command/{number}")
            what = command.pop("what")
            self._follow(number, what, command)

    def release(self) -> None:
        """End `serve` in the other processes."""
        self._command("release")

    def _command(self, what: str, **settings: Any) -> int:
        """Send a command to the other processes; return its number."""
        number = self._commands
        self._commands += 1
        if self._ranks.world > 1:
            self._ranks.publish(f"command/{number}", {"what": what} | settings)
        return number

    def _follow(self, number: int, what: str, settings: dict[str, Any]) -> None:
        ranks = self._ranks
        if what == "evaluate":
            return self._evaluate_for_leader(number, **settings)
        if not ranks.keeps or ranks.leads:
            return  # only the process that keeps another node's θ follows the rest
        if what == "update":
            self._theta.update(ThetaUpdate(**settings))
            ranks.publish(f"updated/{number}/{ranks.node}", True)
        elif what == "verify":
            ranks.publish(f"digest/{number}/{ranks.node}", self._theta.digest())
        elif what == "spread":
            ranks.spread(self._theta, f"spread/{number}")

    def _evaluate_for_leader(
        self,
        number: int,
        members: list[dict[str, Any]],
        prompts: list[Prompt],
        budget: int,
        sampling: dict[str, Any] | None,
    ) -> None:
        drawn = Sampling(**sampling) if sampling else None
        while (index := self._ranks.next(f"next/{number}")) < len(members):
            member = variant_from_json(members[index])
            completions, *seconds = self._worker.evaluate_one(
                member, prompts, max_completion_length=budget, sampling=drawn
            )
            result = {
                "completions": [vars(completion) for completion in completions],
                "seconds": seconds,
                "rank": self._ranks.rank,
            }
            self._ranks.publish(f"result/{number}/{index}", result)

    def _arrived(self, number: int) -> Iterator[Evaluation]:
        """Yield the members that other processes have finished meanwhile."""
        if self._ranks.world == 1:
            return
        for index in sorted(self._waiting):
            key = f"result/{number}/{index}"
            if self._ranks.is_published(key):
                result = self._ranks.wait_for(key)
                self._ranks.forget(key)
                self._waiting.discard(index)
                completions = [Completion(**fields) for fields in result["completions"]]
                work = Work(result["rank"] + 1, *result["seconds"])
                yield Evaluation(index, completions, (work,))

    def _catch_up(self) -> None:
        """Send the leader's θ to the other nodes if their version differs."""
        if self._version != self._theta.version:
            number = self._command("spread")
            if self._ranks.nodes > 1:
                self._ranks.spread(self._theta, f"spread/{number}")
            self._version = self._theta.version
