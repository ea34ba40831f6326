"""Fine-tune a model by evolution strategies.

  estune train --config recipes/quickstart.yaml --sigma 0.002
  estune train --config recipes/countdown/qwen2.5-7b-instruct.yaml recipes/on/one-node-of-8.yaml
  estune train --model_name_or_path MODEL --task countdown --output_dir out
  estune train --model_name_or_path MODEL --dataset_name data.jsonl --reward_funcs my_rewards.short

The model is a hub id, a local folder or a .gguf file. The data need a column `prompt` (text, or a
list of chat messages). Reward functions receive the other columns by name:

  def short(completions, target, **columns):
      return [-abs(len(c) - len(t)) for c, t in zip(completions, target)]

If a run stops, repeat the command with --resume_from_checkpoint true to continue it.
"""

import argparse

from estune.cli.settings import add_flags, read, require_model

SUMMARY = "fine-tune a model"
USAGE = "estune train [--config FILE ...] [--SETTING VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    model = require_model(config)
    from estune.monitor.console import quieten_libraries
    from estune.run.inputs import data_and_rewards

    train_rows, eval_rows, rewards = data_and_rewards(config)
    quieten_libraries()
    from estune.trainer import ESTrainer

    trainer = ESTrainer(model, rewards, config, train_rows, eval_rows)
    trainer.train()
    return 0
