"""Workers evaluate members; `start_workers` makes the kind that a config names."""

from collections.abc import Mapping, Sequence

from estune import engines
from estune.common.types import Prompt
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.base import Worker, Workers
from estune.workers.local import LocalWorkers
from estune.workers.model_source import ModelSource
from estune.workers.ranks import Ranks


def start_workers(
    theta: Theta,
    source: ModelSource,
    config: ESConfig,
    prompts: Mapping[str, Sequence[Prompt]],
    ranks: Ranks | None = None,
) -> Workers:
    """Return the workers that `config` names, with engines that hold θ₀.

    Args:
        prompts: all prompts of the run, by dataset.
        ranks: this process among those launched together, with `workers: accelerate`.

    Raises:
        InputError: an engine cannot be built, or a prompt does not fit.
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
    engine = engines.build(source.checkpoint, source.layout, config, source.tokenizer)
    worker = Worker(theta, engine)
    worker.check_lengths(prompts)
    if ranks:
        from estune.workers.accelerate import AccelerateWorkers

        return AccelerateWorkers(theta, worker, ranks)
    return LocalWorkers(theta, worker)
