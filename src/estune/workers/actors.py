"""What runs on a Ray cluster: engines, and on each node but the trainer's a keeper of θ.

A keeper holds θ in a process of its own, so that θ survives when an engine dies; the engine that
replaces it attaches to the same θ. On the trainer's node, the trainer's process holds θ.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from estune import engines
from estune.common.types import Completion, ExpertCounts, Prompt, Sampling, ThetaUpdate, Variant
from estune.config import ESConfig
from estune.theta.shared_memory import Address
from estune.theta.theta import Theta
from estune.workers.base import Worker
from estune.workers.model_source import ModelSource


@dataclass(frozen=True)
class Location:
    """Where an actor runs."""

    node: str  # Ray's id
    host: str
    process: int
    gpus: tuple[str, ...]

    def __str__(self) -> str:
        gpus = f", GPU {' '.join(self.gpus)}" if self.gpus else ""
        return f"{self.host} (process {self.process}{gpus})"


class EngineActor:
    """A process with one engine.

    Ray chooses its node. The trainer asks for it with `location`, and then calls `build` with the
    address of θ on that node.
    """

    def __init__(self, source: ModelSource, config: ESConfig, threads: int) -> None:
        self._source = source
        self._config = config
        self._threads = threads
        self._worker: Worker | None = None

    def location(self) -> Location:
        import ray

        context = ray.get_runtime_context()
        gpus = tuple(str(number) for number in context.get_accelerator_ids().get("GPU", []))
        return Location(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), gpus)

    def build(self, address: Address) -> None:
        """Build the engine and attach it to θ. Raises InputError or EngineError."""
        torch.set_num_threads(self._threads)
        checkpoint = self._source.here(trust_remote_code=self._config.trust_remote_code)
        layout, tokenizer = self._source.layout, self._source.tokenizer
        engine = engines.build(checkpoint, layout, self._config, tokenizer)
        self._worker = Worker(Theta.attach(address, threads=self._threads), engine)

    def check_lengths(self, datasets: Mapping[str, Sequence[Prompt]]) -> None:
        self._built.check_lengths(datasets)

    def evaluate_one(
        self,
        member: Variant,
        prompts: Sequence[Prompt],
        start: int,
        stop: int,
        budget: int,
        sampling: Sampling | None,
    ) -> tuple[list[Completion], float, float, ExpertCounts]:
        """Call `Worker.evaluate_one` for the prompts from `start` to before `stop`."""
        return self._built.evaluate_one(
            member, prompts[start:stop], max_completion_length=budget, sampling=sampling
        )

    @property
    def _built(self) -> Worker:
        assert self._worker is not None
        return self._worker


class KeeperActor:
    """A process that holds a node's θ, in memory to which the node's engines attach."""

    def __init__(self, source: ModelSource, config: ESConfig) -> None:
        checkpoint = source.here(trust_remote_code=config.trust_remote_code)
        self._theta = Theta.load(checkpoint, source.tuned, share=True)

    def address(self) -> Address | None:
        return self._theta.address

    def version(self) -> int:
        return self._theta.version

    def digest(self) -> str:
        return self._theta.digest()

    def update(self, update: ThetaUpdate) -> None:
        self._theta.update(update)

    def put(self, name: str, start: int, values: NDArray[np.float32]) -> None:
        """Overwrite part of θ by the trainer's values; `became` must follow the last part."""
        self._theta.put(name, start, torch.from_numpy(np.array(values)))

    def became(self, version: int) -> None:
        self._theta.finish_put(version)
