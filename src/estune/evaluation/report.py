"""Evaluate the models that `estune eval` was given, show tables, and write files."""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from estune.common.types import Sampling
from estune.config import RunConfig
from estune.errors import ConfigError, clean
from estune.evaluation import figures, tables
from estune.evaluation.divergence import Divergences, divergences
from estune.evaluation.exams import Exam, ExamResult, examine
from estune.evaluation.figures import PairedComparison, Rules
from estune.evaluation.lm_eval_harness import harness
from estune.monitor.console import Screen
from estune.run.folder import json_lines

Comparisons = dict[str, dict[str, list[PairedComparison]]]  # model → task → measures
_MODELS_WITH_SAMPLES = 2  # with more models, completions are only written to the file


def show_exams(
    options: argparse.Namespace,
    config: RunConfig,
    models: list[str],
    exams: Sequence[Exam],
    sampling: Sampling | None,
) -> None:
    """Evaluate the base (if given) and the models, show each result, then compare them.

    Args:
        options: the command's flags.
    """
    rules = Rules(options.threshold, tuple(options.k or ()), config.seed)
    screen = Screen(config)
    base = options.base
    every_model = list(dict.fromkeys([base, *models] if base else models))
    results: list[ExamResult] = []
    for model in every_model:
        done = examine(model, exams, sampling)
        if done:
            _show_model(screen, done, rules, samples=len(every_model) <= _MODELS_WITH_SAMPLES)
        results += done
    if not results:  # this is a launched process that does not lead
        return
    compared = _compared(results, base, rules) if base else {}
    moved = divergences(results, base) if options.kl else {}
    _show_comparisons(screen, base, compared)
    if moved:
        title = f"reward against KL to {base}, from drawn completions"
        screen.table(title, *tables.frontier_table(results, moved))
        screen.say("KL in nats ± standard error over prompts")
    _write(options, results, rules, compared, moved)


def show_harness(options: argparse.Namespace, config: RunConfig, models: Sequence[str]) -> None:
    """Run lm-evaluation-harness on each model and show a table for each. Raises InputError."""
    if config.workers != "local":
        raise ConfigError(
            f"lm-eval: it runs in one process, so leave workers at local; it is {config.workers}"
        )
    screen = Screen(config)
    for model in models:
        found = harness(model, options.lm_eval, config, options.lm_eval_include_path)
        rows = [[one.task, one.metric, f"{one.value:.4g}", one.error] for one in found]
        head = ("task", "metric", "value", "± stderr")
        screen.table(f"{model}, lm-evaluation-harness", head, rows)


def _show_model(
    screen: Screen, results: Sequence[ExamResult], rules: Rules, *, samples: bool
) -> None:
    model = results[0].model
    for result in results if samples else []:
        screen.samples(f"{len(result.exam.rows)} held-out prompts", result.greedy.records)
    for line in [line for result in results for line in result.warnings()]:
        screen.say(line)
    screen.table(model, *tables.measures_table(results, rules))
    screen.table(f"{model}, its completions", *tables.form_table(results))
    details = [_details(result) for result in results]
    names = dict.fromkeys(name for one in details for name in one)
    tasks = [result.exam.name for result in results] if len(results) > 1 else ["value"]
    rows = [[name, *(one.get(name, "") for one in details)] for name in names]
    screen.table(f"{model}, greedy", ("metric", *tasks), rows)


def _details(result: ExamResult) -> dict[str, str]:
    """Return the metrics that a run would log, without those that `form_table` shows."""
    return {
        name: f"{value:.4g}"
        for name, value in result.greedy.eval_metrics.items()
        if isinstance(value, (int, float)) and not name.startswith("eval_completions/")
    }


def _compared(results: Sequence[ExamResult], base: str, rules: Rules) -> Comparisons:
    bases = {one.exam.name: one for one in results if one.model == base}
    compared: Comparisons = {}
    for one in results:
        if one.model != base:
            found = figures.compare(bases[one.exam.name], one, rules)
            compared.setdefault(one.model, {})[one.exam.name] = found
    return compared


def _show_comparisons(screen: Screen, base: str | None, compared: Comparisons) -> None:
    for model, found in compared.items():
        screen.table(f"{base} against {model}", *tables.comparison_table(found))
        screen.say(tables.how_tested(found))


def _write(
    options: argparse.Namespace,
    results: Sequence[ExamResult],
    rules: Rules,
    compared: Comparisons,
    moved: Divergences,
) -> None:
    if options.output:
        records = [record for result in results for record in figures.records(result)]
        Path(options.output).write_text(json_lines(records), encoding="utf-8")
    if not options.figures:
        return
    rows = []
    for result in results:
        name = result.exam.name
        comparisons = compared.get(result.model, {}).get(name, [])
        rows.append(figures.flat(result, rules, comparisons, moved.get((result.model, name))))
    as_csv = options.figures.endswith(".csv")
    text = _csv(rows) if as_csv else json.dumps(rows, indent=1, allow_nan=False)
    Path(options.figures).write_text(text, encoding="utf-8")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return clean(text.getvalue())
