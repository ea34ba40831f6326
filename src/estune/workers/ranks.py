"""The processes that `accelerate launch` or `torchrun` started: who is who, and how they talk.

What travels is text and a few numbers, so the launcher's key-value store is enough, and no process group stands in the
way of an engine that wants its own. Each node has one θ: its first process makes it, the others attach. Where a node
needs another's θ, in host memory as it is, it comes over Gloo.
"""

import itertools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed

from estune.errors import ConfigError
from estune.theta.shared_memory import Address
from estune.theta.theta import Theta

dist: Any = torch.distributed  # its stores are public, but not in its list of exports
_PATIENCE = timedelta(
    days=30
)  # the leader may score or save for long; one that ends takes the others along


_LAUNCHED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
)  # what torchrun and accelerate launch tell each process

_talks = itertools.count()


def ranks_for(workers: str) -> "Ranks | None":
    """This process's place where `workers` is accelerate, else None.

    Raises:
        ConfigError: several processes were launched together, and `workers` makes nothing of that.
    """
    if workers == "accelerate":
        return Ranks()
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and all(name in os.environ for name in _LAUNCHED):
        raise ConfigError(
            f"workers: a launcher (torchrun or accelerate launch) started {world} processes, which workers: {workers} does not use; "
            "set workers: accelerate, or start estune by itself"
        )
    return None


class Ranks:
    """This process among those that were launched together. Rank 0 leads: it alone trains, and the others serve it.

    Alone, without a launcher, it is the only one. Each model has its own, in which nothing of an earlier one is heard; all
    processes make them in the same order, since they run the same program.
    """

    def __init__(self) -> None:
        environment = os.environ
        self.rank, self.world = (
            int(environment.get("RANK", 0)),
            int(environment.get("WORLD_SIZE", 1)),
        )
        per_node = int(environment.get("LOCAL_WORLD_SIZE", self.world))
        self.local = int(environment.get("LOCAL_RANK", 0))
        self.node, self.nodes = self.rank // per_node, self.world // per_node
        talk, store = next(_talks), dist.HashStore()
        if self.world > 1:
            shared, self._interface = _rendezvous()
            store = dist.PrefixStore(str(talk), shared)
        self.store: Any = store

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def keeps(self) -> bool:
        """Whether the θ of this node is this process's."""
        return self.local == 0

    def say(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def hear(self, key: str) -> Any:
        """Wait until `key` was said."""
        return json.loads(self.store.get(key))

    def heard(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def forget(self, key: str) -> None:
        self.store.delete_key(key)

    def next(self, key: str) -> int:
        """0, 1, 2, …: each number to one process only."""
        return int(self.store.add(key, 1)) - 1

    def take_gpus(self, each: int) -> None:
        """Of this machine's GPUs let this process see its own `each` alone. Engines take the first that they see."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_device(self.local)
            return
        there = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = (
            there.split(",")
            if there
            else [str(number) for number in range(torch.cuda.device_count())]
        )
        if len(gpus) >= (self.local + 1) * each:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(
                gpus[self.local * each : (self.local + 1) * each]
            )

    def meet(self, what: str) -> None:
        """Wait here until all processes have come."""
        self.say(f"{what}/{self.rank}", True)
        for rank in range(self.world):
            self.hear(f"{what}/{rank}")

    def theta(self, load: Callable[[], Theta]) -> Theta:
        """The node's θ: loaded by its first process, attached to by the others."""
        if self.keeps:
            theta = load()
            if self.world > 1:
                assert theta.address is not None
                self.say(f"theta/{self.node}", vars(theta.address))
            return theta
        address = self.hear(f"theta/{self.node}")
        shapes = {name: tuple(shape) for name, shape in address["shapes"].items()}
        return Theta.attach(Address(address["path"], address["token"], shapes))

    def spread(self, theta: Theta, name: str) -> None:
        """Give every node the leader's θ; called by all processes that keep one, with a `name` of its own each time."""
        group = self._group(name)
        version = torch.tensor([theta.version if self.leads else 0])
        _broadcast(group, version)
        for tensor, start, part in theta.parts():
            values = part.clone()
            _broadcast(group, values)
            if not self.leads:
                theta.put(tensor, start, values)
        if not self.leads:
            theta.became(int(version))

    def _group(self, name: str) -> Any:
        """One process of each node, over the interface that was meant when this began."""
        for_engines = os.environ.pop("GLOO_SOCKET_IFNAME", None)
        if self._interface:
            os.environ["GLOO_SOCKET_IFNAME"] = self._interface
        try:
            return dist.ProcessGroupGloo(
                dist.PrefixStore(name, self.store), self.node, self.nodes, _PATIENCE
            )
        finally:
            if for_engines:
                os.environ["GLOO_SOCKET_IFNAME"] = for_engines


@cache
def _rendezvous() -> tuple[Any, str | None]:
    """The launcher's store, which a process can join once, and the interface that Gloo is to use: an engine may later set
    another for processes of its own."""
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # all on one machine: nothing listens beyond it
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=_PATIENCE)))
    store.set_timeout(_PATIENCE)
    return dist.PrefixStore(
        f"estune/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
    ), os.environ.get("GLOO_SOCKET_IFNAME")


def _broadcast(group: Any, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([tensor], options).wait()
