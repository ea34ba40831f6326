"""When a run evaluates and saves, and which saved step is the best, from config and metrics."""

import math
from collections.abc import Mapping
from typing import Any

from estune.config import ESConfig
from estune.errors import ConfigError

Logged = Mapping[int, Mapping[str, Any]]  # step → its line of metrics


def saves(config: ESConfig, step: int) -> bool:
    """Whether a checkpoint follows `step`: every save_steps and after the last step."""
    return step > 0 and (step % config.save_steps == 0 or step == config.max_steps)


def evaluates(config: ESConfig, step: int) -> bool:
    """Whether an evaluation follows `step`; step 0 means before the first step."""
    if step == 0:
        return config.eval_on_start
    periodic = config.eval_steps is not None and step % config.eval_steps == 0
    return config.eval_strategy == "steps" and (periodic or step == config.max_steps)


def best_step(config: ESConfig, logged: Logged, until: int) -> int | None:
    """Return the best saved step up to `until` by metric_for_best_model; of equals the earliest.

    None if no saved step was evaluated.

    Raises:
        ConfigError: there are evaluations, but none has this metric.
    """
    if config.metric_for_best_model is None:
        return None
    name = best_metric(config)
    saved = [step for step in sorted(logged) if step <= until and saves(config, step)]
    evaluated = [step for step in saved if "eval_reward" in logged[step]]
    if evaluated and not any(name in logged[step] for step in evaluated):
        names = sorted(metric for metric in logged[evaluated[-1]] if metric.startswith("eval_"))
        raise ConfigError(
            f"metric_for_best_model: evaluations have no {name!r}; they have {', '.join(names)}"
        )
    known = [step for step in evaluated if logged[step].get(name) is not None]
    return max(known, key=lambda step: _sign(config) * logged[step][name], default=None)


def best_value(config: ESConfig, logged: Logged, until: int) -> float | None:
    """The best value of metric_for_best_model in any evaluation up to `until`."""
    if config.metric_for_best_model is None:
        return None
    name = best_metric(config)
    values = [
        line[name] for step, line in logged.items() if step <= until and line.get(name) is not None
    ]
    return max(values, key=lambda value: _sign(config) * value, default=None)


def plateaued(config: ESConfig, logged: Logged, until: int) -> bool:
    """Whether the last early_stopping_patience evaluations up to `until` brought no improvement.

    As in transformers' EarlyStoppingCallback, an improvement exceeds the best so far by more than
    the threshold.
    """
    if config.early_stopping_patience is None:
        return False
    name = best_metric(config)
    values = [logged[step].get(name) for step in sorted(logged) if step <= until]
    best = -math.inf
    waited = 0
    for value in values:
        if value is None:
            continue
        improved = _sign(config) * value - best > config.early_stopping_threshold
        waited = 0 if improved else waited + 1
        best = max(best, _sign(config) * value)
    return waited >= config.early_stopping_patience


def best_metric(config: ESConfig) -> str:
    """Return the name of metric_for_best_model in metrics.jsonl."""
    return f"eval_{(config.metric_for_best_model or '').removeprefix('eval_')}"


def trainer_state(config: ESConfig, logged: Logged, step: int) -> dict[str, Any]:
    """Return a checkpoint's trainer_state.json, with transformers' names.

    It contains nothing that differs between two runs of the same config.
    """
    best = best_step(config, logged, step)
    return {
        "global_step": step,
        "max_steps": config.max_steps,
        "best_global_step": best,
        "best_metric": None if best is None else logged[best][best_metric(config)],
        "best_model_checkpoint": None if best is None else f"checkpoint-{best}",
        "num_input_tokens_seen": logged[step]["num_tokens"],
    }


def _sign(config: ESConfig) -> int:
    return 1 if config.greater_is_better else -1
