"""Evaluate models on held-out prompts: rewards with intervals, and a comparison with the base.

  estune eval --model out/checkpoint-10 --task countdown
  estune eval --model MODEL --tasks countdown conciseness --num_generations 8 --k 1 4 8
  estune eval --model out/checkpoint-10 --base BASE --task countdown --output completions.jsonl
  estune eval --model out/checkpoint-* --base BASE --task conciseness --kl --figures frontier.csv
  estune eval --model out/checkpoint-10 --lm-eval hellaswag gsm8k
  estune eval --model MODEL --dataset_name data.jsonl --dataset_test_split train \\
    --reward_funcs my_rewards.short

The first command generates greedily and prints completions, figures with 95 % intervals, and
lengths, repetition and the like, which reveal reward hacking. The second also draws 8 completions
per prompt, for mean@8 and pass@k. The third compares two models prompt by prompt with a paired
test. The fourth lists each checkpoint's reward next to its KL from the base. The fifth runs
lm-evaluation-harness. docs/evaluation.md gives the formula of each figure. All settings of
`estune train` are accepted too.
"""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estune.cli.settings import add_flags, read, require_model
from estune.config import RunConfig
from estune.errors import ConfigError

if TYPE_CHECKING:
    from estune.common.types import Sampling
    from estune.evaluation.exams import Exam

SUMMARY = "evaluate models on held-out prompts"
USAGE = """estune eval --model MODEL ... [--tasks TASK ...] [--base MODEL] [--num_generations N]
                   [--kl] [--SETTING VALUE ...]"""
_FORMATS = (".csv", ".json")


def add_options(parser: argparse.ArgumentParser) -> None:
    def add(name: str, metavar: str, help: str, **more: Any) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, help=help, **more)

    add("model", "MODEL", "models to evaluate: hub ids, folders or .gguf files", nargs="+")
    add("base", "MODEL", "base model to compare each model with, prompt by prompt")
    add("tasks", "TASK", "tasks to evaluate on; estune tasks lists them", nargs="+")
    add("num_generations", "N", "also draw N completions per prompt at random", type=int)
    add("temperature", "T", "temperature of drawn completions [1.0]", type=float)
    top_p = "draw only from the likeliest tokens, up to this total probability [1.0]"
    add("top_p", "P", top_p, type=float)
    add("k", "K", "values of k for pass@k [1 and num_generations]", type=int, nargs="+")
    success = "lowest reward that counts as a success [1.0]"
    add("threshold", "REWARD", success, type=float, default=1.0)
    kl = "estimate KL(model || base) from drawn completions, and show it next to the reward"
    parser.add_argument("--kl", action="store_true", help=kl)
    add("output", "FILE", "write every completion with its reward here, one JSON object per line")
    add("figures", "FILE", "write every figure here, one row per model and task: .csv or .json")
    harness = "run these tasks of lm-evaluation-harness; max_eval_samples limits their rows"
    add("lm-eval", "TASK", harness, nargs="+")
    add("lm-eval-include-path", "DIR", "folder with your own tasks for lm-evaluation-harness")
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    models = options.model or [require_model(config, "model")]
    sampling = _sampling(options, config)
    _check_threshold_and_files(options)
    exams = _exams(options, unknown, config)
    from estune.monitor.console import quieten_libraries

    quieten_libraries()
    from estune.evaluation import report
    from estune.monitor.console import set_log_level

    set_log_level(config)
    if exams:
        report.show_exams(options, config, list(dict.fromkeys(models)), exams, sampling)
    if options.lm_eval:
        with_base = [options.base, *models] if options.base else models
        report.show_harness(options, config, list(dict.fromkeys(with_base)))
    return 0


def _sampling(options: argparse.Namespace, config: RunConfig) -> "Sampling | None":
    """Return how to draw completions, or None if only greedy ones are wanted.

    Sets `options.k` to all values of k.

    Raises:
        ConfigError: a value is out of range, or does not go with the others.
    """
    from estune.common.types import Sampling

    count = options.num_generations
    if options.kl and count is None:
        count = 1
    if count is None:
        for name in ("temperature", "top_p", "k"):
            if getattr(options, name) is not None:
                raise ConfigError(f"{name}: nothing is drawn; add --num_generations N")
        return None
    temperature = 1.0 if options.temperature is None else options.temperature
    top_p = 1.0 if options.top_p is None else options.top_p
    options.k = sorted(set(options.k or (1, count)))
    _check_ranges(count, temperature, top_p, options.k)
    if options.kl and (temperature, top_p) != (1.0, 1.0):
        raise ConfigError("kl: needs temperature and top_p of 1, the model's own distribution")
    if options.kl and not options.base:
        raise ConfigError("kl: give the model to measure from with --base")
    return Sampling(temperature, top_p, count, config.seed)


def _check_ranges(count: int, temperature: float, top_p: float, ks: list[int]) -> None:
    def check(name: str, valid: bool, limits: str, value: Any) -> None:
        if not valid:
            raise ConfigError(f"{name}: must be {limits}; it is {value}")

    positive = "a number above 0; greedy completions are always included"
    check("num_generations", count >= 1, "at least 1", count)
    check("temperature", 0 < temperature < math.inf, positive, temperature)
    check("top_p", 0 < top_p <= 1, "above 0 and at most 1", top_p)
    check("k", ks[0] >= 1 and ks[-1] <= count, f"from 1 to num_generations, {count}", ks)


def _check_threshold_and_files(options: argparse.Namespace) -> None:
    if math.isnan(options.threshold):
        raise ConfigError("threshold: must be a number; it is nan")
    if options.figures and Path(options.figures).suffix not in _FORMATS:
        raise ConfigError(f"figures: {options.figures} must end in {' or '.join(_FORMATS)}")
    for name in ("output", "figures"):
        if path := getattr(options, name):
            _check_writable(name, Path(path))


def _check_writable(name: str, path: Path) -> None:
    try:
        path.open("a").close()
    except OSError as error:
        raise ConfigError(
            f"{name}: {path} cannot be written ({error.strerror}); choose another"
        ) from None


def _exams(options: argparse.Namespace, unknown: list[str], config: RunConfig) -> "list[Exam]":
    """Return one exam per task; without tasks, the exam of the dataset that the config names.

    The list is empty if the command is to run only lm-evaluation-harness.
    """
    tasks = list(dict.fromkeys([config.task, *(options.tasks or [])]))
    tasks = [task for task in tasks if task]
    data_settings = ("dataset_name", "eval_dataset_name")
    data = next((name for name in data_settings if getattr(config, name)), None)
    if data and len(tasks) > 1:
        raise ConfigError(f"tasks: {data} replaces a task's data, so give only one task with it")
    if tasks:
        return [_exam(_config_of_task(task, options, unknown)) for task in tasks]
    if options.lm_eval and not data:
        return []
    return [_exam(config)]


def _config_of_task(task: str, options: argparse.Namespace, unknown: list[str]) -> RunConfig:
    """Return the command line's config with `task`, whose defaults then apply."""
    return read(argparse.Namespace(**vars(options) | {"task": task}), unknown, quietly=True)


def _exam(config: RunConfig) -> "Exam":
    """Return the exam on the config's held-out rows."""
    from estune.run.inputs import data_and_rewards

    config = dataclasses.replace(config, eval_strategy="steps")
    _, held_out, rewards = data_and_rewards(dataclasses.replace(config, max_train_samples=1))
    if held_out is None:
        raise ConfigError(
            f"dataset_test_split: {config.dataset_name} has no split "
            f"{config.dataset_test_split!r}; give a split that it has, or eval_dataset_name"
        )
    from estune.evaluation.exams import Exam

    return Exam.of(config.task or Path(config.dataset_name or "").name, config, held_out, rewards)
