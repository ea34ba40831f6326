"""Evaluate models on held-out prompts: rewards, intervals, comparison with the base, KL.

  estune eval --model out/checkpoint-10 --task countdown
  estune eval --model MODEL --tasks countdown conciseness --num_generations 8 --k 1 4 8
  estune eval --model out/checkpoint-10 --base BASE --task countdown --output completions.jsonl
  estune eval --model out/checkpoint-* --base BASE --task conciseness --kl --figures frontier.csv
  estune eval --model out/checkpoint-10 --lm-eval hellaswag gsm8k
  estune eval --model MODEL --dataset_name data.jsonl --dataset_test_split train \\
    --reward_funcs my_rewards.short

The first command generates greedily and prints tables: completions, figures with 95 % intervals,
and lengths, repetition and the like, which reveal reward hacking. The second also draws 8
completions per prompt, for mean@8 and pass@k. The third compares two models prompt by prompt with a
paired test. The fourth sets each checkpoint's reward against its KL from the base. The fifth runs
lm-evaluation-harness. docs/evaluation.md gives each figure's formula. Any setting of `estune train`
may be given too.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from estune.cli.settings import add_flags, read
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

    add("model", "MODEL", "hub ids, folders or .gguf files, as model_name_or_path", nargs="+")
    add("base", "MODEL", "base model to compare each model with, prompt by prompt")
    add("tasks", "TASK", "several tasks at once; estune tasks lists them", nargs="+")
    add("num_generations", "N", "draw N completions per prompt, besides the greedy one", type=int)
    add("temperature", "T", "temperature of drawn completions [1.0]", type=float)
    add("top_p", "P", "probability mass to draw from, likeliest tokens first [1.0]", type=float)
    add("k", "K", "the k of each pass@k [1 and num_generations]", type=int, nargs="+")
    success = "lowest reward that counts as a success [1.0]"
    add("threshold", "REWARD", success, type=float, default=1.0)
    kl = "estimate KL(model || base) from drawn completions, and show it against the reward"
    parser.add_argument("--kl", action="store_true", help=kl)
    add("output", "FILE", "write every completion with its reward here, one JSON object per line")
    add("figures", "FILE", "write every figure here, one row per model and task: .csv or .json")
    harness = "run these tasks of lm-evaluation-harness; max_eval_samples limits their rows"
    add("lm-eval", "TASK", harness, nargs="+")
    add("lm-eval-include-path", "DIR", "folder with your own tasks for lm-evaluation-harness")
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    models = options.model or ([config.model_name_or_path] if config.model_name_or_path else [])
    if not models:
        raise ConfigError("model: give a hub id, a local folder or a .gguf file")
    sampling = _sampling(options, config)
    _check_files(options)
    exams = _exams(options, unknown, config)
    from estune.monitor.console import quieten_libraries

    quieten_libraries()
    from estune.evaluation import report
    from estune.monitor.console import set_log_level

    set_log_level(config)
    if exams:
        report.show_exams(options, config, list(dict.fromkeys(models)), exams, sampling)
    if options.lm_eval:
        everyone = [options.base, *models] if options.base else models
        report.show_harness(options, config, list(dict.fromkeys(everyone)))
    return 0


def _sampling(options: argparse.Namespace, config: RunConfig) -> "Sampling | None":
    """Return how to draw completions, or None. Raises ConfigError: a value is out of range."""
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
    ks = sorted(set(options.k or (1, count)))
    options.k = ks
    positive = "a number above 0; greedy completions are always included"
    _check_range("num_generations", count >= 1, "at least 1", count)
    _check_range("temperature", 0 < temperature < float("inf"), positive, temperature)
    _check_range("top_p", 0 < top_p <= 1, "above 0 and at most 1", top_p)
    _check_range("k", ks[0] >= 1 and ks[-1] <= count, f"from 1 to num_generations, {count}", ks)
    if options.kl and (temperature, top_p) != (1.0, 1.0):
        raise ConfigError("kl: needs temperature and top_p of 1, the model's own distribution")
    if options.kl and not options.base:
        raise ConfigError("kl: name the model to measure from with --base")
    return Sampling(temperature, top_p, count, config.seed)


def _check_range(name: str, right: bool, limits: str, value: Any) -> None:
    if not right:
        raise ConfigError(f"{name}: must be {limits}; it is {value}")


def _check_files(options: argparse.Namespace) -> None:
    if options.threshold != options.threshold:
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
    """Return an exam per task or one of the dataset; none if only lm-eval is wanted."""
    names = list(dict.fromkeys([*([config.task] if config.task else []), *(options.tasks or [])]))
    data = next(
        (name for name in ("dataset_name", "eval_dataset_name") if getattr(config, name)), None
    )
    if not names:
        return [] if options.lm_eval and not data else [_exam(config)]
    if data and len(names) > 1:
        raise ConfigError(f"tasks: {data} replaces a task's data, so give only one task with it")
    return [
        _exam(read(argparse.Namespace(**vars(options) | {"task": name}), unknown, quietly=True))
        for name in names
    ]


def _exam(config: RunConfig) -> "Exam":
    from estune.run.inputs import data_and_rewards

    config = dataclasses.replace(config, eval_strategy="steps")
    _, held_out, rewards = data_and_rewards(dataclasses.replace(config, max_train_samples=1))
    if held_out is None:
        raise ConfigError(
            f"dataset_test_split: {config.dataset_name} has no split "
            f"{config.dataset_test_split!r}; name one that it has, or give eval_dataset_name"
        )
    from estune.evaluation.exams import Exam

    return Exam.of(config.task or Path(config.dataset_name or "").name, config, held_out, rewards)
