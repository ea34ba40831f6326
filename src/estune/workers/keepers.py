"""θ on the nodes of a Ray cluster other than the trainer's: one keeper process per node.

Every keeper applies the updates that the trainer applies. Only a keeper that starts late, was
damaged, or missed a resume gets θ itself.
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
    """Keeps the θ of all nodes equal to the trainer's.

    Args:
        theta: the trainer's.
        source: the base model, which each keeper loads.
        stop_engines: called with the id of a node whose θ was lost. Its engines must stop, because
            nothing updates the θ that they read.
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
        """Return where engines on `node` attach to θ; start a keeper there if there is none.

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
        """Send θ to the keepers if it changed without them, as in a resume."""
        if self._version == self._theta.version:
            return
        for node, keeper in list(self.actors.items()):
            with self._forgotten_if_lost(node):
                self._send(keeper)
        self._version = self._theta.version

    def _get(self, answer: Any) -> Any:
        return ray.get(answer, timeout=self._config.worker_timeout)

    def _send(self, keeper: Any) -> None:
        """Give a keeper the trainer's θ, unless it has it, and compare digests."""
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
        """Forget the keeper of `node` if it is lost in the block; it restarts when needed."""
        try:
            yield
        except RayError as error:
            logger.warning("the keeper of θ on node %s was lost (%s)", node[:8], reason(error))
            self._forget(node)

    def _forget(self, node: str) -> None:
        ray.kill(self.actors.pop(node))
        self._stop_engines(node)
