"""Fine-tune a model by evolution strategies.

  estune train --config recipes/quickstart.yaml --sigma 0.002
  estune train --config recipes/countdown/qwen2.5-7b-instruct.yaml recipes/on/one-node-of-8.yaml
  estune train --model_name_or_path MODEL --task countdown --output_dir out
  estune train --model_name_or_path MODEL --dataset_name data.jsonl --reward_funcs my_rewards.short

The model is a hub id, a local folder or a .gguf file. The data have a column `prompt` (text, or a list of chat
messages) and any others, which the reward functions get by name:

  def short(completions, target, **columns):
      return [-abs(len(c) - len(t)) for c, t in zip(completions, target)]

Whatever stops a run, the same command with --resume_from_checkpoint true goes on from its last whole step.
"""

import argparse
from typing import Any

from estune.cli.settings import add_flags, read
from estune.config import RunConfig
from estune.errors import ConfigError

SUMMARY = "fine-tune a model"
USAGE = "estune train [--config FILE ...] [--SETTING VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    if not config.model_name_or_path:
        raise ConfigError("model_name_or_path: give a hub id, a local folder or a .gguf file")
    train_rows, eval_rows, rewards = data_and_rewards(config)
    quieten_libraries()
    from estune.trainer import ESTrainer

    trainer = ESTrainer(config.model_name_or_path, rewards, config, train_rows, eval_rows)
    trainer.train()
    return 0


def quieten_libraries() -> None:
    """No progress bars of transformers' own beside the run's."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def data_and_rewards(config: RunConfig) -> tuple[Any, Any, Any]:
    """Training rows, held-out rows or None, and reward functions, from the task or from what is named.

    Raises:
        ConfigError: neither a task nor a dataset with rewards is named.
    """
    from estune.tasks import get_task

    if config.datasets:
        from estune.cli.datasets import mixtures

        return mixtures(config, evaluating=_evaluating(config))
    task = get_task(config.task) if config.task else None
    if task is None and not config.dataset_name:
        raise ConfigError("task: give one (see estune tasks), or dataset_name and reward_funcs")
    rewards: Any = config.reward_funcs or (task.reward_funcs if task else None)
    if rewards is None:
        raise ConfigError("reward_funcs: give a built-in name or a dotted path such as my_rewards.short")
    if config.dataset_name:
        return *_datasets(config, task.adapt if task else None), rewards
    assert task is not None
    held_out = _held_out(config, task.adapt) if config.eval_dataset_name else None
    if held_out is None and _evaluating(config):
        held_out = task.test(config.max_eval_samples)
    return task.train(config.max_train_samples), held_out, rewards


def _datasets(config: RunConfig, adapt: Any = None) -> tuple[Any, Any]:
    from estune.data import has_split, load_rows

    assert config.dataset_name is not None
    train_rows = load_rows(config.dataset_name, config.dataset_train_split, config.dataset_config, adapt)
    if not config.eval_dataset_name and _evaluating(config) and has_split(config.dataset_name, config.dataset_test_split):
        held_out = load_rows(config.dataset_name, config.dataset_test_split, config.dataset_config, adapt)[: config.max_eval_samples]
    else:
        held_out = _held_out(config, adapt)
    return train_rows[: config.max_train_samples], held_out


def _held_out(config: RunConfig, adapt: Any) -> Any:
    """The rows of eval_dataset_name, None where there is none."""
    from estune.data import load_rows

    if not (name := config.eval_dataset_name):
        return None
    return load_rows(name, _split_of(name, config), config.dataset_config, adapt)[: config.max_eval_samples]


def _split_of(name: str, config: RunConfig) -> str:
    """The split to read held-out data from: a single file has only one."""
    from estune.data import has_split

    return config.dataset_test_split if has_split(name, config.dataset_test_split) else "train"


def _evaluating(config: RunConfig) -> bool:
    return config.eval_strategy != "no" or config.eval_on_start
