"""Workers evaluate members. `start_workers` starts those that a config asks for."""

from collections.abc import Mapping, Sequence

from estune import engines
from estune.common.types import Prompt
from estune.config import ESConfig
from estune.errors import ConfigError
from estune.theta.theta import Theta
from estune.workers import cluster
from estune.workers.base import Worker, Workers
from estune.workers.launched_process import LaunchedProcess
from estune.workers.local import LocalWorkers
from estune.workers.model_source import ModelSource


def start_workers(
    theta: Theta,
    source: ModelSource,
    config: ESConfig,
    prompts: Mapping[str, Sequence[Prompt]],
    launched: LaunchedProcess | None = None,
) -> Workers:
    """Start the workers that `config.workers` names; their engines hold θ₀.

    Args:
        prompts: all prompts of the run, by dataset.
        launched: this process, if `workers: accelerate`.

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
    if launched:
        launched.take_gpus(config.vllm_tensor_parallel_size)
    engine = engines.build(source.checkpoint, source.layout, config, source.tokenizer)
    worker = Worker(theta, engine)
    worker.check_lengths(prompts)
    if launched:
        from estune.workers.accelerate import AccelerateWorkers

        return AccelerateWorkers(theta, worker, launched, prompts)
    return LocalWorkers(theta, worker)
