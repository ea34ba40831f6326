"""One engine in each process that `accelerate launch` or `torchrun` started.

Rank 0 leads: its trainer scores completions, updates θ and writes the run's folder. The other
processes follow its commands. All processes take members from a shared counter, and each node
applies the same updates to its θ. If one process fails, the launcher ends them all; the run can be
resumed.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
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
from estune.errors import DataError
from estune.theta.theta import Theta
from estune.workers.base import Evaluation, Status, Work, Worker
from estune.workers.launched_process import LaunchedProcess

logger = logging.getLogger(__name__)

_POLL = 0.02  # seconds to wait before checking again for the others' completions


class AccelerateWorkers:
    """Evaluates members in every launched process.

    Args:
        theta: this node's θ.
        worker: this process's engine.
        process: this process.
        prompts: all prompts of the run, by dataset. Every process has them, so messages only say
            which are meant.
    """

    def __init__(
        self,
        theta: Theta,
        worker: Worker,
        process: LaunchedProcess,
        prompts: Mapping[str, Sequence[Prompt]],
    ) -> None:
        self._theta = theta
        self._worker = worker
        self._process = process
        self._prompts = {_digest(prompt): prompt for each in prompts.values() for prompt in each}
        self._commands = 0  # how many were sent or followed so far
        self._unfinished: set[int] = set()  # members of the current step
        self._others_version = theta.version  # of θ on the other nodes
        process.barrier("built")  # every engine is compared with θ₀ before the first update

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
            prompts=list(map(_digest, prompts)),
            budget=max_completion_length,
            sampling=vars(sampling) if sampling else None,
        )
        self._unfinished = set(range(len(members)))
        while (index := self._process.next(f"next/{number}")) < len(members):
            self._unfinished.discard(index)
            completions, load, generate, experts = self._worker.evaluate_one(
                members[index],
                prompts,
                max_completion_length=max_completion_length,
                sampling=sampling,
            )
            yield Evaluation(index, completions, (Work(1, load, generate, experts),))
            yield from self._others_results(number)
        while self._unfinished:
            time.sleep(_POLL)
            yield None
            yield from self._others_results(number)

    def update(self, update: ThetaUpdate) -> None:
        self._catch_up()
        number = self._command("update", **vars(update))
        self._theta.update(update)
        for node in range(1, self._process.nodes):
            self._process.wait_for(f"updated/{number}/{node}")
        self._others_version = self._theta.version

    def verify(self, digest: str) -> None:
        number = self._command("verify")
        others = range(1, self._process.nodes)
        digests = {node: self._process.wait_for(f"digest/{number}/{node}") for node in others}
        if wrong := [str(node) for node, found in digests.items() if found != digest]:
            logger.warning(
                "θ on node %s differs from the leader's; it is rebuilt", ", ".join(wrong)
            )
            self._others_version = -1  # no version of θ, so that it is sent again
            self._catch_up()

    def status(self) -> Status:
        processes = self._process.world_size
        return Status(processes, processes, min(processes, len(self._unfinished)))

    def serve(self) -> None:
        """Follow the leader's commands until it releases this process."""
        name = ""
        while name != "release":
            number = self._commands
            self._commands += 1
            command = self._process.wait_for(f"command/{number}")
            name = command["name"]
            self._follow(number, name, command["arguments"])

    def release(self) -> None:
        """End `serve` in the other processes."""
        self._command("release")

    def _command(self, name: str, **arguments: Any) -> int:
        """Send a command to the other processes; return its number."""
        number = self._commands
        self._commands += 1
        if self._process.world_size > 1:
            self._process.publish(f"command/{number}", {"name": name, "arguments": arguments})
        return number

    def _follow(self, number: int, name: str, arguments: dict[str, Any]) -> None:
        process = self._process
        if name == "evaluate":
            return self._evaluate_for_leader(number, **arguments)
        if not process.holds_theta or process.leads:
            return  # the other commands are for θ on the other nodes, which one process holds
        if name == "update":
            self._theta.update(ThetaUpdate(**arguments))
            process.publish(f"updated/{number}/{process.node}", True)
        elif name == "verify":
            process.publish(f"digest/{number}/{process.node}", self._theta.digest())
        elif name == "broadcast":
            process.broadcast(self._theta, f"broadcast/{number}")

    def _evaluate_for_leader(
        self,
        number: int,
        members: list[dict[str, Any]],
        prompts: list[str],
        budget: int,
        sampling: dict[str, Any] | None,
    ) -> None:
        if not self._prompts.keys() >= set(prompts):
            raise DataError(
                f"process {self._process.rank}: the leader, process 0, has prompts that this "
                "process lacks; give all launched processes the same data"
            )
        wanted = [self._prompts[digest] for digest in prompts]
        while (index := self._process.next(f"next/{number}")) < len(members):
            completions, *work = self._worker.evaluate_one(
                variant_from_json(members[index]),
                wanted,
                max_completion_length=budget,
                sampling=Sampling(**sampling) if sampling else None,
            )
            result = {
                "completions": [vars(completion) for completion in completions],
                "work": work,
                "rank": self._process.rank,
            }
            self._process.publish(f"result/{number}/{index}", result)

    def _others_results(self, number: int) -> Iterator[Evaluation]:
        """Yield the members that other processes have finished since the last call."""
        if self._process.world_size == 1:
            return
        for index in sorted(self._unfinished):
            key = f"result/{number}/{index}"
            if self._process.is_published(key):
                result = self._process.wait_for(key)
                self._process.delete(key)
                self._unfinished.discard(index)
                completions = [Completion(**fields) for fields in result["completions"]]
                done = Work(result["rank"] + 1, *result["work"])
                yield Evaluation(index, completions, (done,))

    def _catch_up(self) -> None:
        """Send the leader's θ to the other nodes if they have another version of it."""
        if self._others_version != self._theta.version:
            number = self._command("broadcast")
            if self._process.nodes > 1:
                self._process.broadcast(self._theta, f"broadcast/{number}")
            self._others_version = self._theta.version


def _digest(prompt: Prompt) -> str:
    """Return a digest of a prompt with its images, whose own digests they show as text."""
    return blake2b(json.dumps(prompt, default=str).encode(), digest_size=16).hexdigest()
