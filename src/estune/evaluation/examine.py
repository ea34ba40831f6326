"""What `estune eval` does once its input is known to be right: examine the models, show tables, write files."""

import argparse
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from estune.common.types import Sampling
from estune.config import RunConfig
from estune.errors import ConfigError, clean
from estune.evaluation import report
from estune.evaluation.divergence import Divergence
from estune.evaluation.lm_eval_harness import harness
from estune.evaluation.models import Exam, Result, divergences, examine
from estune.evaluation.report import Comparison, Rules
from estune.monitor.console import Screen
from estune.run.folder import json_lines

Compared = dict[str, dict[str, list[Comparison]]]  # model → task → comparisons with the base
_MODELS_WITH_SAMPLES = 2  # with more, their answers are left to the file


def show_exams(
    options: argparse.Namespace,
    config: RunConfig,
    models: list[str],
    exams: Sequence[Exam],
    sampling: Sampling | None,
) -> None:
    """Examine the base, if there is one, and the models; show each as soon as it is done, then what they have to do with one another."""
    rules = Rules(options.threshold, tuple(options.k or ()), config.seed)
    screen = Screen(config)
    everyone = list(dict.fromkeys([*([options.base] if options.base else []), *models]))
    results: list[Result] = []
    for model in everyone:
        done = examine(model, exams, sampling)
        if done:
            _show_model(screen, done, rules, samples=len(everyone) <= _MODELS_WITH_SAMPLES)
        results += done
    if not results:  # a launched process that does not lead
        return
    compared = _compared(results, options.base, rules) if options.base else {}
    moved = divergences(results, options.base) if options.kl else {}
    _show_between(screen, results, options.base, compared, moved)
    _write(options, results, rules, compared, moved)


def show_harness(options: argparse.Namespace, config: RunConfig, models: Sequence[str]) -> None:
    """Run lm-evaluation-harness on each model, a table each. Raises InputError."""
    if config.workers != "local":
        raise ConfigError(
            f"lm-eval: it runs in one process, so leave workers at local; it is {config.workers}"
        )
    screen = Screen(config)
    for model in models:
        found = harness(model, options.lm_eval, config, options.lm_eval_include_path)
        rows = [
            [row["task"], row["metric"], f"{row['value']:.4g}", _error(row["stderr"])]
            for row in found
        ]
        screen.table(
            f"{model}, lm-evaluation-harness", ("task", "metric", "value", "± stderr"), rows
        )


def _show_model(screen: Screen, results: Sequence[Result], rules: Rules, *, samples: bool) -> None:
    model = results[0].model
    for result in results if samples else []:
        screen.samples(f"{len(result.exam.rows)} held-out prompts", result.greedy.records)
    for result in results:
        if result.lost:
            screen.say(result.lost)
        if result.overran:
            screen.say(result.overran)
    screen.table(model, *report.figures_table(results, rules))
    screen.table(f"{model}, its answers", *report.shape_table(results))
    shown = dict.fromkeys(name for result in results for name in _detail(result))
    tasks = [result.exam.name for result in results] if len(results) > 1 else ["value"]
    rows = [[name, *(_detail(result).get(name, "") for result in results)] for name in shown]
    screen.table(f"{model}, greedy", ("metric", *tasks), rows)


def _detail(result: Result) -> dict[str, str]:
    """The metrics that a training run logs, but for those of the table of answers."""
    metrics = result.greedy.metrics.items()
    return {
        n: f"{v:.4g}"
        for n, v in metrics
        if isinstance(v, (int, float)) and not n.startswith("eval_completions/")
    }


def _compared(results: Sequence[Result], base: str, rules: Rules) -> Compared:
    bases = {one.exam.name: one for one in results if one.model == base}
    compared: Compared = {}
    for one in results:
        if one.model != base:
            compared.setdefault(one.model, {})[one.exam.name] = report.compare(
                bases[one.exam.name], one, rules
            )
    return compared


def _show_between(
    screen: Screen,
    results: Sequence[Result],
    base: str | None,
    compared: Compared,
    moved: Mapping[tuple[str, str], Divergence],
) -> None:
    for model, found in compared.items():
        screen.table(f"{base} against {model}", *report.comparison_table(found))
        screen.say(report.how_tested(found))
    if moved:
        screen.table(
            f"reward against KL to {base}, from drawn answers",
            *report.frontier_table(results, moved),
        )
        screen.say("KL in nats ± standard error over prompts")


def _write(
    options: argparse.Namespace,
    results: Sequence[Result],
    rules: Rules,
    compared: Compared,
    moved: Mapping[tuple[str, str], Divergence],
) -> None:
    if options.output:
        records = [record for result in results for record in report.records(result)]
        Path(options.output).write_text(json_lines(records), encoding="utf-8")
    if options.figures:
        rows = [
            report.flat(
                one,
                rules,
                compared.get(one.model, {}).get(one.exam.name, []),
                moved.get((one.model, one.exam.name)),
            )
            for one in results
        ]
        text = (
            _csv(rows)
            if options.figures.endswith(".csv")
            else json.dumps(rows, indent=1, allow_nan=False)
        )
        Path(options.figures).write_text(text, encoding="utf-8")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return clean(text.getvalue())


def _error(value: Any) -> str:
    return "–" if not isinstance(value, float) or math.isnan(value) else f"{value:.2g}"
