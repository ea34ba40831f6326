"""Run EleutherAI's lm-evaluation-harness on a model, to see if tuning harmed other abilities.

https://github.com/EleutherAI/lm-evaluation-harness
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from estune.common.guard import guarded, reason
from estune.config import RunConfig
from estune.errors import ConfigError, DataError
from estune.run.base_model import base_model


@dataclass(frozen=True)
class HarnessFigure:
    """A number that the harness computed; `error` is its standard error as text."""

    task: str
    metric: str
    value: float
    error: str


def harness(
    model: str, tasks: Sequence[str], config: RunConfig, include_path: str | None
) -> list[HarnessFigure]:
    """Run the harness's `tasks` on `model`; return one number per task and metric.

    Raises:
        ConfigError: the harness is not installed, or has no such task.
        DataError: the harness failed, for example because a dataset cannot be downloaded.
    """
    manager = _manager(include_path)
    with guarded(ConfigError, f"lm-eval: it cannot look for {', '.join(tasks)}"):
        unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(
            f"lm-eval: it has no task {unknown[0]!r}; lm-eval ls tasks lists them, "
            "--lm-eval-include-path adds a folder"
        )
    _, folder = base_model(model, config, None)
    with guarded(ConfigError, "lm-eval: it cannot be imported"):
        import lm_eval

    try:
        found = lm_eval.simple_evaluate(
            **_model(str(folder), config),
            tasks=list(tasks),
            task_manager=manager,
            limit=config.max_eval_samples,
            bootstrap_iters=1000,
        )
    except Exception as error:  # the causes (dataset, hub, model, memory) have many types
        raise DataError(
            f"lm-eval: {', '.join(tasks)} cannot be run ({reason(error)}); "
            "its data come from the hub: without a network, use tasks whose data are local files"
        ) from error
    results = sorted(found["results"].items())
    return [figure for task, values in results for figure in _figures(task, values)]


def _manager(include_path: str | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError('lm-eval: it is not installed; pip install "estune[lm-eval]"') from None
    except Exception as error:  # for example, it needs other versions of packages
        raise ConfigError(f"lm-eval: it cannot be imported ({reason(error)})") from error
    advice = "look into --lm-eval-include-path"
    with guarded(ConfigError, "lm-eval: its tasks cannot be listed", advice):
        return TaskManager(include_path=include_path)


def _model(folder: str, config: RunConfig) -> dict[str, Any]:
    """Return the arguments of simple_evaluate that choose the model and its engine."""
    from estune.engines.device import dtype_name, engine_device, engine_dtype
    from estune.engines.vllm_settings import model_arguments

    dtype = engine_dtype(config)
    if config.engine == "vllm":
        arguments = {"pretrained": folder} | model_arguments(config, dtype)
        return {"model": "vllm", "model_args": arguments, "batch_size": "auto"}
    arguments = {
        "pretrained": folder,
        "dtype": dtype_name(dtype),
        "trust_remote_code": config.trust_remote_code,
    }
    return {
        "model": "hf",
        "model_args": arguments,
        "device": engine_device(config),
        "batch_size": config.generation_batch_size,
    }


def _figures(task: str, values: dict[str, Any]) -> list[HarnessFigure]:
    """Return the numbers of a task; the harness names each `metric,filter`."""
    found = []
    for name, value in values.items():
        metric, _, used = name.partition(",")
        if isinstance(value, (int, float)) and used and not metric.endswith("_stderr"):
            error = values.get(f"{metric}_stderr,{used}")
            known = isinstance(error, float) and not math.isnan(error)
            label = metric if used == "none" else f"{metric} ({used})"
            found.append(HarnessFigure(task, label, value, f"{error:.2g}" if known else "–"))
    return found
