"""Score models on held-out prompts, without training: how good, how sure, how different from the base, and at what price.

  estune eval --model out/checkpoint-10 --task countdown
  estune eval --model MODEL --tasks countdown conciseness --num_generations 8 --k 1 4 8
  estune eval --model out/checkpoint-10 --base BASE --task countdown --output answers.jsonl
  estune eval --model out/checkpoint-* --base BASE --task conciseness --kl --figures frontier.csv
  estune eval --model out/checkpoint-10 --lm-eval hellaswag gsm8k
  estune eval --model MODEL --dataset_name data.jsonl --dataset_test_split train --reward_funcs my_rewards.short

The first answers greedily and prints a table of answers, one of figures with 95 % intervals, and one of what the answers
look like: a reward that is hacked shows in lengths, repetition and answers that are all the same. The second also draws
8 answers a prompt, for mean@8 and pass@k. The third compares two models prompt by prompt with a paired test. The fourth
sets each checkpoint's reward against how far it moved from the base (KL, from drawn answers). The fifth runs
lm-evaluation-harness. docs/evaluation.md has each figure's formula. Any setting of `estune train` may be given too.
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

SUMMARY = "score models on held-out prompts"
USAGE = "estune eval --model MODEL ... [--tasks TASK ...] [--base MODEL] [--num_generations N] [--kl] [--SETTING VALUE ...]"
_FORMATS = (".csv", ".json")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        nargs="+",
        help="hub ids, folders or .gguf files; the same as model_name_or_path",
    )
    add("--base", metavar="MODEL", help="a model to compare each of them with, prompt by prompt")
    add("--tasks", metavar="TASK", nargs="+", help="several tasks at once; estune tasks lists them")
    add(
        "--num_generations",
        metavar="N",
        type=int,
        help="draw so many answers a prompt, beside the greedy one",
    )
    add("--temperature", metavar="T", type=float, help="of what is drawn [1.0]")
    add(
        "--top_p",
        metavar="P",
        type=float,
        help="part of the probability to draw from, likeliest tokens first [1.0]",
    )
    add(
        "--k",
        metavar="K",
        type=int,
        nargs="+",
        help="which pass@k to tell, each at most num_generations [1 and num_generations]",
    )
    add(
        "--threshold",
        metavar="REWARD",
        type=float,
        default=1.0,
        help="the least reward that counts as a success [1.0]",
    )
    add(
        "--kl",
        action="store_true",
        help="estimate KL(model || base) from drawn answers, one more row a model: the frontier",
    )
    add("--output", metavar="FILE", help="write every answer with its reward here, one JSON a line")
    add(
        "--figures",
        metavar="FILE",
        help="write every figure here, a row a model and task: .csv or .json",
    )
    add(
        "--lm-eval",
        metavar="TASK",
        nargs="+",
        help="run these tasks of lm-evaluation-harness; max_eval_samples limits their rows",
    )
    add(
        "--lm-eval-include-path",
        metavar="DIR",
        help="a folder with tasks of your own for lm-evaluation-harness",
    )
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
        report.show_harness(
            options,
            config,
            list(dict.fromkeys([*([options.base] if options.base else []), *models])),
        )
    return 0


def _sampling(options: argparse.Namespace, config: RunConfig) -> "Sampling | None":
    """How to draw, or None; raises ConfigError for what cannot be drawn."""
    from estune.common.types import Sampling

    count, temperature, top_p = options.num_generations, options.temperature, options.top_p
    if options.kl:
        count = 1 if count is None else count
    if count is None:
        if given := next(
            (name for name in ("temperature", "top_p", "k") if getattr(options, name) is not None),
            None,
        ):
            raise ConfigError(f"{given}: nothing is drawn; add --num_generations N")
        return None
    temperature, top_p = (
        1.0 if temperature is None else temperature,
        1.0 if top_p is None else top_p,
    )
    options.k = sorted(set(options.k or (1, count)))
    _check_range("num_generations", count >= 1, "at least 1", count)
    _check_range(
        "temperature",
        0 < temperature < float("inf"),
        "a number above 0; greedy answers are always given too",
        temperature,
    )
    _check_range("top_p", 0 < top_p <= 1, "above 0 and at most 1", top_p)
    _check_range(
        "k",
        options.k[0] >= 1 and options.k[-1] <= count,
        f"from 1 to num_generations, {count}",
        options.k,
    )
    if options.kl and (temperature, top_p) != (1.0, 1.0):
        raise ConfigError(
            "kl: it is about what the model itself would say, so leave temperature and top_p at 1"
        )
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
    """What to ask: each task with its own defaults, or the one dataset; nothing when only the harness is wanted."""
    names = list(dict.fromkeys([*([config.task] if config.task else []), *(options.tasks or [])]))
    data = next(
        (name for name in ("dataset_name", "eval_dataset_name") if getattr(config, name)), None
    )
    if not names:
        return [] if options.lm_eval and not data else [_exam(config)]
    if data and len(names) > 1:
        raise ConfigError(
            f"tasks: {data} stands in for a task's own data, so give one task with it"
        )
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
            f"dataset_test_split: {config.dataset_name} has no split {config.dataset_test_split!r}; "
            "name one that it has, or give eval_dataset_name"
        )
    from estune.evaluation.exams import Exam

    return Exam.of(config.task or Path(config.dataset_name or "").name, config, held_out, rewards)
