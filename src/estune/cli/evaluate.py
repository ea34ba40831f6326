"""Score a model on a task's held-out prompts, greedily, without training.

  estune eval --model out/checkpoint-10 --task countdown
  estune eval --model MODEL --task conciseness --max_eval_samples 20 --output answers.jsonl
  estune eval --model MODEL --dataset_name data.jsonl --dataset_test_split train --reward_funcs my_rewards.short

Prints a table of sample answers and one of figures. Any setting of `estune train` may be given too.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

from estune.cli import train
from estune.cli.settings import add_flags, read
from estune.errors import ConfigError

SUMMARY = "score a model on held-out prompts"
USAGE = "estune eval --model MODEL [--task TASK] [--output FILE] [--SETTING VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL", help="hub id, local folder or .gguf file; the same as model_name_or_path")
    parser.add_argument("--output", metavar="FILE", help="write every answer with its reward here, one JSON a line")
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    model = options.model or config.model_name_or_path
    if not model:
        raise ConfigError("model: give a hub id, a local folder or a .gguf file")
    config = dataclasses.replace(config, eval_strategy="steps")
    _, held_out, rewards = train.data_and_rewards(config)
    if held_out is None:
        raise ConfigError(
            f"dataset_test_split: {config.dataset_name} has no split {config.dataset_test_split!r}; "
            "name one that it has, or give eval_dataset_name"
        )
    if options.output:
        _check_writable(Path(options.output))
    train.quieten_libraries()
    from estune.folder import json_lines
    from estune.trainer import ESTrainer

    with tempfile.TemporaryDirectory() as scratch:  # evaluating writes nothing to output_dir
        trainer = ESTrainer(model, rewards, dataclasses.replace(config, output_dir=scratch), None, held_out)
        held = trainer.held_out()
    if not trainer.model.leads:
        return 0
    trainer.screen.samples(f"{len(held.records)} held-out prompts", held.records)
    shown = [(name, f"{value:.4g}") for name, value in held.metrics.items() if isinstance(value, (int, float))]
    trainer.screen.table(model, ("metric", "value"), shown)
    if options.output:
        Path(options.output).write_text(json_lines(held.records), encoding="utf-8")
    return 0


def _check_writable(path: Path) -> None:
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"output: {path} cannot be written ({error.strerror}); choose another") from None
