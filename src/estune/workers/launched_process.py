"""One of the processes that `accelerate launch` or `torchrun` started, and its messages.

The processes exchange text and a few numbers through the launcher's key-value store, since a
process group could collide with an engine's own. Each node has one θ: its first process loads it,
the others attach to it. If a node has to receive the leader's θ, Gloo sends it from host memory.
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
# The others wait for the leader, which may score or save for long. If it dies, the launcher ends
# them.
_PATIENCE = timedelta(days=30)
_PART = 1 << 20  # characters of one message's part, which JSON writes in ASCII
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # variables that launchers set in each process

_prefixes = itertools.count()


def find_launched_process(workers: str) -> "LaunchedProcess | None":
    """Return this process if `workers` is "accelerate", else None.

    Raises:
        ConfigError: several processes were launched together, and `workers` is something else.
    """
    if workers == "accelerate":
        return LaunchedProcess()
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and all(name in os.environ for name in _LAUNCHED):
        raise ConfigError(
            f"workers: a launcher (torchrun or accelerate launch) started {world} processes, "
            f"which workers: {workers} does not use; set workers: accelerate, or start estune "
            "without a launcher"
        )
    return None


class LaunchedProcess:
    """This process among those launched together; without a launcher it is the only one.

    Rank 0 leads: only its trainer trains, and the other processes serve it.

    Each object prefixes its keys with a number of its own, so that messages of one model never
    reach another. The numbers agree in all processes, because all run the same program and so
    create these objects in the same order.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        self.node = self.rank // per_node
        self.nodes = self.world_size // per_node
        self.store: Any = dist.HashStore()
        self._interface: str | None = None
        prefix = str(next(_prefixes))
        if self.world_size > 1:
            shared, self._interface = _rendezvous()
            self.store = dist.PrefixStore(prefix, shared)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def holds_theta(self) -> bool:
        """Whether this process loads the θ of its node, to which the node's others attach."""
        return self.local_rank == 0

    def publish(self, key: str, value: Any) -> None:
        """Publish a value that JSON can hold, in parts, since the store refuses more than 8 MiB."""
        text = json.dumps(value)
        starts = range(0, len(text), _PART)
        for number, start in enumerate(starts):
            self.store.set(f"{key}/{number}", text[start : start + _PART])
        self.store.set(key, str(len(starts)))

    def wait_for(self, key: str) -> Any:
        """Wait until a process has published `key`; return its value."""
        parts = int(self.store.get(key))
        return json.loads(b"".join(self.store.get(f"{key}/{number}") for number in range(parts)))

    def is_published(self, key: str) -> bool:
        return bool(self.store.check([key]))

    def delete(self, key: str) -> None:
        for number in range(int(self.store.get(key))):
            self.store.delete_key(f"{key}/{number}")
        self.store.delete_key(key)

    def next(self, key: str) -> int:
        """Return the next of 0, 1, 2, …, which all processes take from the same counter `key`."""
        return int(self.store.add(key, 1)) - 1

    def take_gpus(self, each: int) -> None:
        """Let this process see only its own `each` GPUs, because an engine uses the first it sees.

        With `each` = 2, the node's first process gets GPUs 0 and 1, its second 2 and 3, and so on.
        """
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_device(self.local_rank)  # too late to hide the others
            return
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
        own = gpus[self.local_rank * each : (self.local_rank + 1) * each]
        if len(own) == each:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)

    def barrier(self, name: str) -> None:
        """Wait until all processes have called this with the same `name`, which is used once."""
        self.publish(f"{name}/{self.rank}", True)
        for rank in range(self.world_size):
            self.wait_for(f"{name}/{rank}")

    def theta(self, load: Callable[[], Theta]) -> Theta:
        """Return the node's θ: `load` loads it in the node's first process, the others attach."""
        if not self.holds_theta:
            address = self.wait_for(f"theta/{self.node}")
            shapes = {name: tuple(shape) for name, shape in address["shapes"].items()}
            return Theta.attach(Address(address["path"], address["token"], shapes))
        theta = load()
        if self.world_size > 1:
            assert theta.address is not None
            self.publish(f"theta/{self.node}", vars(theta.address))
        return theta

    def broadcast(self, theta: Theta, name: str) -> None:
        """Send the leader's θ to every node; each process that holds a θ calls this.

        Args:
            name: the same in all processes, and different at each call.
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
        """Return a process group with one process per node.

        It uses the network interface of `_rendezvous`, whatever an engine has set since then.
        """
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
    """Return the launcher's store and the network interface that Gloo should use.

    A process can join the store only once, so the result is cached. The interface is read before
    an engine is built, because vLLM sets it to `lo` for its own processes.
    """
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        # All processes are on this machine, so no port needs to be open to others.
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
