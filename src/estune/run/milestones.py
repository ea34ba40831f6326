"""When a run evaluates, saves and stops early, and which of its saved steps is the best."""

import math
from collections.abc import Mapping
from typing import Any

from estune.config import ESConfig
from estune.errors import ConfigError

Logged = Mapping[int, Mapping[str, Any]]  # step → its line of metrics


def saves(config: ESConfig, step: int) -> bool:
    """Whether a checkpoint is saved after `step`: every save_steps and after the last step."""
    return step > 0 and (step % config.save_steps == 0 or step == config.max_steps)


def evaluates(config: ESConfig, step: int) -> bool:
    """Whether an evaluation follows `step`; for step 0, whether one comes before training."""
    if step == 0:
        return config.eval_on_start
    periodic = config.eval_steps is not None and step % config.eval_steps == 0
    return config.eval_strategy == "steps" and (periodic or step == config.max_steps)


def best_step(config: ESConfig, logged: Logged, until: int) -> int | None:
    """Return the saved step up to `until` with the best metric_for_best_model.

    If several are equal, it is the earliest; if no saved step was evaluated, None.

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
    return max(known, key=lambda step: _goodness(config, logged[step][name]), default=None)


def best_value(config: ESConfig, logged: Logged, until: int) -> float | None:
    """The best value of metric_for_best_model in any evaluation up to `until`."""
    if config.metric_for_best_model is None:
        return None
    name = best_metric(config)
    values = [
        line[name] for step, line in logged.items() if step <= until and line.get(name) is not None
    ]
    return max(values, key=lambda value: _goodness(config, value), default=None)


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
        goodness = _goodness(config, value)
        improved = goodness - best > config.early_stopping_threshold
        waited = 0 if improved else waited + 1
        best = max(best, goodness)
    return waited >= config.early_stopping_patience


def best_metric(config: ESConfig) -> str:
    """Return the name of metric_for_best_model in metrics.jsonl."""
    return f"eval_{(config.metric_for_best_model or '').removeprefix('eval_')}"


def trainer_state(config: ESConfig, logged: Logged, step: int) -> dict[str, Any]:
    """Return the content of a checkpoint's trainer_state.json, with transformers' names.

    It is the same in all runs of one config, so it has no times.
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


def _goodness(config: ESConfig, value: float) -> float:
    """Return `value`, or −`value` if a lower metric_for_best_model is better."""
    return value if config.greater_is_better else -value
