"""The processes that `accelerate launch` or `torchrun` started: which one this is, and messages.

Messages are text and a few numbers, so the launcher's key-value store carries them; a process
group could collide with an engine's own. Each node has one θ: its first process loads it, the
others attach to it. Where a node needs another node's θ, Gloo sends it from host memory.
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
# The leader may score or save for long; if it ends, the launcher ends the others.
_PATIENCE = timedelta(days=30)
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # variables that launchers set in each process

_prefixes = itertools.count()


def ranks_for(workers: str) -> "Ranks | None":
    """Return this process's ranks if `workers` is "accelerate", else None.

    Raises:
        ConfigError: several processes were launched together, and `workers` is something else.
    """
    if workers == "accelerate":
        return Ranks()
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and all(name in os.environ for name in _LAUNCHED):
        raise ConfigError(
            f"workers: a launcher (torchrun or accelerate launch) started {world} processes, "
            f"which workers: {workers} does not use; set workers: accelerate, or start estune "
            "without a launcher"
        )
    return None


class Ranks:
    """This process among those launched together; without a launcher it is the only one.

    Rank 0 leads: it alone trains, and the others serve it. Each Model gets a fresh key prefix, so
    that no message from an earlier one leaks in. All processes run the same program, so they make
    their Ranks in the same order and agree on the prefix.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.world))
        self.node = self.rank // per_node
        self.nodes = self.world // per_node
        self.store: Any = dist.HashStore()
        self._interface: str | None = None
        prefix = str(next(_prefixes))
        if self.world > 1:
            shared, self._interface = _rendezvous()
            self.store = dist.PrefixStore(prefix, shared)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def keeps(self) -> bool:
        """Whether this process loads the θ of its node."""
        return self.local == 0

    def publish(self, key: str, value: Any) -> None:
        """Publish a value that JSON can hold."""
        self.store.set(key, json.dumps(value))

    def wait_for(self, key: str) -> Any:
        """Wait until a process has published `key`; return its value."""
        return json.loads(self.store.get(key))

    def is_published(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def forget(self, key: str) -> None:
        self.store.delete_key(key)

    def next(self, key: str) -> int:
        """Return 0, 1, 2, …: each number to one process only."""
        return int(self.store.add(key, 1)) - 1

    def take_gpus(self, each: int) -> None:
        """Restrict this process to its own `each` GPUs, because an engine takes the first ones."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_device(self.local)
            return
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
        mine = gpus[self.local * each : (self.local + 1) * each]
        if len(mine) == each:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)

    def meet(self, what: str) -> None:
        """Wait until all processes have called this."""
        self.publish(f"{what}/{self.rank}", True)
        for rank in range(self.world):
            self.wait_for(f"{what}/{rank}")

    def theta(self, load: Callable[[], Theta]) -> Theta:
        """Return the node's θ: loaded by its first process, attached to by the others."""
        if not self.keeps:
            address = self.wait_for(f"theta/{self.node}")
            shapes = {name: tuple(shape) for name, shape in address["shapes"].items()}
            return Theta.attach(Address(address["path"], address["token"], shapes))
        theta = load()
        if self.world > 1:
            assert theta.address is not None
            self.publish(f"theta/{self.node}", vars(theta.address))
        return theta

    def spread(self, theta: Theta, name: str) -> None:
        """Send the leader's θ to every node; each process that keeps a θ calls this.

        Args:
            name: different at each call.
        """
        group = self._group(name)
        version = torch.tensor([theta.version if self.leads else 0])
        _broadcast(group, version)
        for tensor, start, part in theta.parts():
            values = part.clone()
            _broadcast(group, values)
            if not self.leads:
                theta.put(tensor, start, values)
        if not self.leads:
            theta.finish_put(int(version))

    def _group(self, name: str) -> Any:
        """Return a group of one process per node, on the interface configured at the start."""
        for_engines = os.environ.pop("GLOO_SOCKET_IFNAME", None)
        if self._interface:
            os.environ["GLOO_SOCKET_IFNAME"] = self._interface
        try:
            store = dist.PrefixStore(name, self.store)
            return dist.ProcessGroupGloo(store, self.node, self.nodes, _PATIENCE)
        finally:
            if for_engines:
                os.environ["GLOO_SOCKET_IFNAME"] = for_engines


@cache
def _rendezvous() -> tuple[Any, str | None]:
    """Return the launcher's store, which a process can join once, and Gloo's interface.

    The interface is read now because an engine may later set another for its own processes.
    """
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        # All processes are on one machine, so nothing needs to listen beyond it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store, _, _ = next(iter(dist.rendezvous("env://", timeout=_PATIENCE)))
    store.set_timeout(_PATIENCE)
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    return dist.PrefixStore(f"estune/{restarts}", store), interface


def _broadcast(group: Any, tensor: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    group.broadcast([tensor], options).wait()
