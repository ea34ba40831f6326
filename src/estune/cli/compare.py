"""Compare ES with RL on the same model, prompts, reward functions, tokens and seeds.

  estune compare --config recipes/quickstart.yaml --methods es,es-paper,grpo --seeds 3
  estune compare --config run.yaml --methods es-paper dr_grpo --learning_rates 1e-5 2e-5 mezo=1e-6
  estune compare --config run.yaml --methods dapo --rl_kwargs '{mask_truncated_completions: false}'
  estune compare --config run.yaml --dry_run
  estune compare --redraw estune-compare

ES runs in estune, RL in TRL. Each method is trained once per learning rate and seed, each time in a
process of its own. The results are a table (each method at its best rate), curves and all figures.
If the command is killed, repeat it: finished runs are skipped. RL needs TRL, and plots need
matplotlib: pip install 'estune[rl]'. docs/compare.md explains what makes the comparison fair.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from estune.cli.settings import add_flags, parsed, read, require_model, unreadable
from estune.config import RunConfig
from estune.errors import ConfigError, DataError

SUMMARY = "compare ES with RL at equal tokens"
USAGE = """estune compare [--config FILE ...] [--methods METHOD ...] [--seeds N] [--tokens N]
                      [--output DIR] [--SETTING VALUE ...]"""


def add_options(parser: argparse.ArgumentParser) -> None:
    from estune.evaluation.compare.methods import DEFAULT, METHODS

    def number(name: str, default: int | None, help: str) -> None:
        parser.add_argument(f"--{name}", metavar="N", type=int, default=default, help=help)

    def text(name: str, metavar: str, help: str, **more: Any) -> None:
        parser.add_argument(f"--{name}", metavar=metavar, help=help, **more)

    known = "; ".join(f"{method.name}: {method.summary}" for method in METHODS.values())
    methods = f"methods, separated by spaces or commas; {known} [all]"
    rates = "learning rates to try with every RL method, or with one: METHOD=1e-6,1e-5"
    text("methods", "METHOD", methods, nargs="+", default=list(DEFAULT))
    number("seeds", 3, "number of seeds, counted up from the config's seed [3]")
    number("tokens", 80_000, "tokens of training completions per run [80000]")
    number("eval_tokens", None, "tokens between evaluations [a tenth of tokens]")
    number("eval_prompts", 128, "maximum of prompts per evaluation [128]")
    text("learning_rates", "RATE", f"{rates} [RL 1e-5 2e-5 5e-5, mezo 1e-7 1e-6 1e-5]", nargs="+")
    text("rl_kwargs", "KWARGS", "further settings of TRL's GRPOConfig, such as '{use_vllm: true}'")
    text("output", "DIR", "folder of all runs [estune-compare]", default="estune-compare")
    dry = "list the runs and their settings without starting them"
    parser.add_argument("--dry_run", action="store_true", help=dry)
    text("redraw", "DIR", "redraw the table and the plots of the comparison in this folder")
    # The next two are for the processes that this command starts, one per run.
    text("run", "DIR", argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    add_flags(parser)


def run(options: argparse.Namespace, unknown: list[str]) -> int:
    config = read(options, unknown)
    if options.run:
        return _run_one(Path(options.run), options.prepare)
    if options.redraw:
        return _redraw(Path(options.redraw))
    return _compare(options, config, Path(options.output))


def _compare(options: argparse.Namespace, config: RunConfig, output: Path) -> int:
    from estune.common.durable import locked
    from estune.evaluation.compare import plots
    from estune.evaluation.compare.execute import claim, collect, execute_all

    runs = _runs(options, config)
    if options.dry_run:
        return _list(runs)
    if why_no_plots := plots.missing():
        _print_now(why_no_plots)
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        with locked(output, "output"):
            claim(runs, output)
            execute_all(runs, output, _print_now, lambda: _write(collect(runs, output), output))
    except KeyboardInterrupt:
        return _stopped("Ctrl-C", 130)
    except SystemExit:
        return _stopped("SIGTERM", 143)
    finally:
        signal.signal(signal.SIGTERM, previous)
    comparison = collect(runs, output)
    _write(comparison, output)
    _show(comparison, output)
    return 0


def _runs(options: argparse.Namespace, config: RunConfig) -> list[Any]:
    """Return the requested runs, after checking the input."""
    from estune.common.types import is_token_ids
    from estune.evaluation.compare.methods import chosen, grids
    from estune.evaluation.compare.runs import Budget, check, runs
    from estune.run.inputs import data_and_rewards
    from estune.tasks.rows import rows_of

    methods = chosen(options.methods)
    rates = grids(methods, options.learning_rates)
    eval_tokens = options.eval_tokens
    if eval_tokens is None:
        eval_tokens = max(1, options.tokens // 10)
    budget = Budget(options.tokens, eval_tokens, options.eval_prompts)
    rl_settings = parsed(options.rl_kwargs, "--rl_kwargs") if options.rl_kwargs else {}
    if not isinstance(rl_settings, dict):
        raise ConfigError("rl_kwargs: must be a mapping, such as {use_vllm: true}")
    require_model(config)
    check(config)
    rows = rows_of(data_and_rewards(config)[0], "train_dataset")
    uses_rl = any(method.kind == "rl" for method in methods)
    if uses_rl and any(is_token_ids(row["prompt"]) for row in rows):
        raise DataError(
            "train_dataset: TRL does not accept prompts of token ids; "
            "give text or messages, or compare only ES methods"
        )
    return runs(config, methods, rates, options.seeds, budget, len(rows), rl_settings)


def _run_one(folder: Path, prepare: bool) -> int:
    """Do the run that `folder` describes, or only prepare it, in the process started for it."""
    from estune.evaluation.compare import child

    if prepare:
        child.prepare(child.read(folder))
    else:
        child.execute(folder)
    return 0


def _redraw(folder: Path) -> int:
    path = folder / "compare.json"
    try:
        comparison = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"redraw: {unreadable(path, error)}") from None
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
    screen.table("completions at the end", *answers_table(comparison))
    for line in [*notes(comparison), *differences(comparison)]:
        screen.say(f"- {line}")
    if why_no_plots := plots.missing():
        screen.say(why_no_plots)
        return
    files = [folder / "compare.json", folder / "compare.md"]
    if comparison["runs"]:
        files += plots.draw(comparison, folder)
    screen.say(f"written: {', '.join(map(str, files))}")


def _print_now(line: str) -> None:
    print(line, flush=True)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(143)


def _stopped(by: str, status: int) -> int:
    advice = "finished runs are kept; repeat the command to continue"
    print(f"estune: stopped by {by}; {advice}", file=sys.stderr)
    return status
