"""Compare ES with RL: the same model, prompts, reward functions, tokens and seeds, ES by estune, RL by TRL.

  estune compare --config recipes/quickstart.yaml --methods es,es-paper,mezo,grpo,dr_grpo,dapo --seeds 3 --tokens 80000
  estune compare --config run.yaml --methods es-paper dr_grpo --learning_rates 1e-5 2e-5 mezo=1e-6
  estune compare --config run.yaml --methods dapo --rl_kwargs '{mask_truncated_completions: false}'
  estune compare --config run.yaml --dry_run
  estune compare --redraw estune-compare

Every method is run with each of its learning rates and each seed, in a process of its own. A table, curves and all figures
come out; the table shows a method at its best rate. Killed, the same command goes on: what is finished is not done again.
RL needs TRL, and plots need matplotlib: pip install 'estune[rl]'. docs/compare.md says what is fair here and what is not.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from estune.cli.settings import add_flags, read
from estune.config import RunConfig
from estune.errors import ConfigError, DataError

SUMMARY = "compare ES with RL at equal tokens"
USAGE = "estune compare [--config FILE ...] [--methods METHOD ...] [--seeds N] [--tokens N] [--output DIR] [--SETTING VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    from estune.evaluation.compare.methods import DEFAULT, METHODS

    add = parser.add_argument
    known = "; ".join(f"{method.name}: {method.summary}" for method in METHODS.values())
    add(
        "--methods",
        metavar="METHOD",
        nargs="+",
        default=list(DEFAULT),
        help=f"which, with spaces or commas between; {known} [all]",
    )
    add(
        "--seeds",
        metavar="N",
        type=int,
        default=3,
        help="seeds of each method, from the config's on [3]",
    )
    add(
        "--tokens",
        metavar="N",
        type=int,
        default=80_000,
        help="tokens of training completions after which a run ends [80000]",
    )
    add(
        "--eval_tokens",
        metavar="N",
        type=int,
        help="tokens between evaluations [a tenth of tokens]",
    )
    add(
        "--eval_prompts",
        metavar="N",
        type=int,
        default=128,
        help="prompts that each of them asks, of a set, at most [128]",
    )
    rates = "for all RL methods, or METHOD=1e-6,1e-5 for one"
    add(
        "--learning_rates",
        metavar="RATE",
        nargs="+",
        help=f"{rates} [RL 1e-5 2e-5 5e-5, mezo 1e-7 1e-6 1e-5]",
    )
    add(
        "--rl_kwargs",
        metavar="KWARGS",
        help="more settings of TRL's GRPOConfig as YAML, such as '{use_vllm: true}'",
    )
    add(
        "--output",
        metavar="DIR",
        default="estune-compare",
        help="folder of all runs [estune-compare]",
    )
    add("--dry_run", action="store_true", help="list the runs and their settings, and do nothing")
    add("--redraw", metavar="DIR", help="table and plots again of a comparison that is there")
    add(
        "--run", metavar="DIR", help=argparse.SUPPRESS
    )  # one run, in the process that is made for it
    add("--prepare", action="store_true", help=argparse.SUPPRESS)
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    if options.run:
        return _one(Path(options.run), options.prepare)
    if options.redraw:
        return _redraw(Path(options.redraw))
    return _compare(options, config, Path(options.output))


def _compare(options: argparse.Namespace, config: RunConfig, output: Path) -> int:
    from estune.common.durable import locked
    from estune.evaluation.compare import plots
    from estune.evaluation.compare.execute import claim, collect, do_all

    runs = _runs(options, config)
    if options.dry_run:
        return _list(runs)
    if without := plots.missing():
        print(without, flush=True)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with locked(output, "output"):
            claim(runs, output)
            do_all(runs, output, _say, lambda: _write(collect(runs, output), output))
    except KeyboardInterrupt:
        return _stopped("Ctrl-C", 130)
    except SystemExit:
        return _stopped("SIGTERM", 143)
    finally:
        signal.signal(signal.SIGTERM, before)
    comparison = collect(runs, output)
    _write(comparison, output)
    _show(comparison, output)
    return 0


def _runs(options: argparse.Namespace, config: RunConfig) -> list[Any]:
    """The runs that are asked for, with what can be known to be wrong said before any of them begins."""
    from estune.cli.settings import parsed
    from estune.common.types import is_token_ids
    from estune.evaluation.compare.methods import chosen, grids
    from estune.evaluation.compare.runs import Budget, check, runs
    from estune.run.inputs import data_and_rewards
    from estune.tasks.rows import rows_of

    methods = chosen(options.methods)
    rates = grids(methods, options.learning_rates)
    every = options.eval_tokens if options.eval_tokens is not None else max(1, options.tokens // 10)
    budget = Budget(options.tokens, every, options.eval_prompts)
    more = parsed(options.rl_kwargs, "--rl_kwargs") if options.rl_kwargs else {}
    if not isinstance(more, dict):
        raise ConfigError("rl_kwargs: must be a mapping, such as {use_vllm: true}")
    if not config.model_name_or_path:
        raise ConfigError("model_name_or_path: give a hub id, a local folder or a .gguf file")
    check(config)
    rows = rows_of(data_and_rewards(config)[0], "train_dataset")
    if any(method.kind == "rl" for method in methods) and any(
        is_token_ids(row["prompt"]) for row in rows
    ):
        raise DataError(
            "train_dataset: TRL takes no prompts of token ids; give text or messages, or compare ES methods alone"
        )
    return runs(config, methods, rates, options.seeds, budget, len(rows), more)


def _one(folder: Path, prepare: bool) -> int:
    from estune.evaluation.compare import child

    if prepare:
        child.prepare(child.read(folder))
    else:
        child.do(folder)
    return 0


def _redraw(folder: Path) -> int:
    try:
        comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"redraw: {folder / 'compare.json'} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None
    _write(comparison, folder)
    _show(comparison, folder)
    return 0


def _list(runs: list[Any]) -> int:
    for one in runs:
        print(one.label)
        for name, value in sorted((one.rl or one.settings).items()):
            print(f"  {name}: {value}")
    return 0


def _write(comparison: dict[str, Any], folder: Path) -> None:
    from estune.common.durable import write_text
    from estune.evaluation.compare.table import markdown

    write_text(folder / "compare.json", json.dumps(comparison, indent=1) + "\n")
    write_text(folder / "compare.md", markdown(comparison))


def _show(comparison: dict[str, Any], folder: Path) -> None:
    from estune.evaluation.compare import plots
    from estune.evaluation.compare.table import (
        answers_table,
        differences,
        notes,
        results_table,
        title,
    )
    from estune.monitor.console import Screen

    screen = Screen(RunConfig())
    screen.table(title(comparison), *results_table(comparison))
    screen.table("answers in the end", *answers_table(comparison))
    for line in [*notes(comparison), *differences(comparison)]:
        screen.say(f"- {line}")
    files = [folder / "compare.json", folder / "compare.md"]
    without = plots.missing()
    files += plots.draw(comparison, folder) if without is None and comparison["runs"] else []
    screen.say(without or f"written: {', '.join(map(str, files))}")


def _say(line: str) -> None:
    print(line, flush=True)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(143)


def _stopped(by: str, status: int) -> int:
    print(
        f"estune: stopped by {by}; what is finished stays, and the same command goes on",
        file=sys.stderr,
    )
    return status
