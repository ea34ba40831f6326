"""Workers evaluate members; `start_workers` makes those that a config names."""

from collections.abc import Mapping, Sequence

from estune import engines
from estune.common.types import Prompt
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.base import Worker, Workers
from estune.workers.model_source import ModelSource
from estune.workers.ranks import Ranks


def start_workers(
    theta: Theta,
    source: ModelSource,
    config: ESConfig,
    prompts: Mapping[str, Sequence[Prompt]],
    ranks: Ranks | None = None,
) -> Workers:
    """The workers that `config` asks for, with engines that hold θ₀.

    Args:
        prompts: all that will be asked, by dataset.
        ranks: this process's place among those that were launched together, for accelerate.

    Raises:
        InputError: an engine cannot be had, or a prompt does not fit.
        EngineError: an engine does not hold the base model's weights.
    """
    if config.workers == "ray":
        cluster.prepare(config)
        try:
            from estune.workers.ray import RayWorkers
        except ImportError:
            raise ConfigError('workers: ray is not installed; pip install "estune[ray]"') from None
        return RayWorkers(theta, source, config, prompts)
    if ranks:
        ranks.take_gpus(config.vllm_tensor_parallel_size)
    worker = Worker(
        theta, engines.build(source.checkpoint, source.layout, config, source.tokenizer)
    )
    worker.check_lengths(prompts)
    if ranks:
        from estune.workers.accelerate import AccelerateWorkers

        return AccelerateWorkers(theta, worker, ranks)
    from estune.workers.local import LocalWorkers

    return LocalWorkers(theta, worker)
