"""θ on the other nodes of a Ray cluster: on each of them, one process keeps it (a keeper).

Every keeper applies the same updates as the trainer. θ itself is sent only to a keeper that
started after the first update, whose θ was damaged, or whose trainer resumed a run.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from estune.common.guard import reason
from estune.common.types import ThetaUpdate
from estune.config import ESConfig
from estune.errors import EngineError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.actors import KeeperActor
from estune.workers.model_source import ModelSource

logger = logging.getLogger(__name__)


class Keepers:
    """Keeps θ on all nodes equal to the trainer's.

    Args:
        theta: the trainer's θ.
        source: the base model, which each keeper loads.
        stop_engines: called with the id of a node whose keeper was lost. The node's engines must
            stop, because nothing updates the θ that they read any more.
    """

    def __init__(
        self,
        theta: Theta,
        source: ModelSource,
        config: ESConfig,
        stop_engines: Callable[[str], None],
    ) -> None:
        self._theta = theta
        self._source = source
        self._config = config
        self._stop_engines = stop_engines
        self.actors: dict[str, Any] = {}  # by node
        self._version = theta.version  # of the keepers' θ

    def address(self, node: str) -> Any:
        """Return the address of θ for engines on `node`; start a keeper there if there is none.

        Raises:
            RayError: the keeper cannot be started, or was lost.
        """
        if node in self.actors:
            try:
                return self._get(self.actors[node].address.remote())
            except RayError:
                self._forget(node)
        options = {"num_cpus": 0, **cluster.only_on(node)}
        keeper = ray.remote(KeeperActor).options(**options).remote(self._source, self._config)
        address = self._get(keeper.address.remote())
        self._send(keeper)
        self.actors[node] = keeper
        return address

    def update(self, update: ThetaUpdate) -> None:
        """Apply an update to the trainer's θ and to every keeper's, at the same time."""
        self.catch_up()
        answers = {node: keeper.update.remote(update) for node, keeper in self.actors.items()}
        self._theta.update(update)
        for node, answer in answers.items():
            with self._forgotten_if_lost(node):
                self._get(answer)
        self._version = self._theta.version

    def verify(self, digest: str) -> None:
        """Send θ to each keeper whose digest differs."""
        for node, keeper in list(self.actors.items()):
            with self._forgotten_if_lost(node):
                if self._get(keeper.digest.remote()) != digest:
                    logger.warning(
                        "θ on node %s differs from the trainer's; it is rebuilt", node[:8]
                    )
                    self._send(keeper)

    def catch_up(self) -> None:
        """Send θ to the keepers if the trainer changed it alone, as it does to resume a run."""
        if self._version == self._theta.version:
            return
        for node, keeper in list(self.actors.items()):
            with self._forgotten_if_lost(node):
                self._send(keeper)
        self._version = self._theta.version

    def _get(self, answer: Any) -> Any:
        return ray.get(answer, timeout=self._config.worker_timeout)

    def _send(self, keeper: Any) -> None:
        """Send a keeper the trainer's θ, unless it has the same, and compare the digests."""
        digest, version = self._theta.digest(), self._theta.version
        same_version = ray.get(keeper.version.remote()) == version
        if same_version and ray.get(keeper.digest.remote()) == digest:
            return
        for name, start, part in self._theta.parts():
            ray.get(keeper.put.remote(name, start, part.numpy()))
        ray.get(keeper.became.remote(version))
        if ray.get(keeper.digest.remote()) != digest:
            raise EngineError(
                "θ arrived damaged on a node of the cluster; its memory or the network is at fault"
            )

    @contextmanager
    def _forgotten_if_lost(self, node: str) -> Iterator[None]:
        """Forget the keeper of `node` if the block finds it lost; `address` starts another."""
        try:
            yield
        except RayError as error:
            logger.warning("the keeper of θ on node %s was lost (%s)", node[:8], reason(error))
            self._forget(node)

    def _forget(self, node: str) -> None:
        ray.kill(self.actors.pop(node))
        self._stop_engines(node)
