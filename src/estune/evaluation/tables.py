"""The tables that `estune eval` prints."""

import math
import re
from collections.abc import Mapping, Sequence

from estune.common.moments import known, mean
from estune.evaluation.divergence import Divergences
from estune.evaluation.exams import ExamResult, rewards_of
from estune.evaluation.figures import FORM, PairedComparison, Rules, form, measures
from estune.evaluation.statistics import Estimate

Table = tuple[Sequence[str], list[list[str]]]  # head, rows


def measures_table(results: Sequence[ExamResult], rules: Rules) -> Table:
    """Return one row per task: estimates and their 95 % intervals."""
    found = [measures(result, rules) for result in results]
    rows = [
        [result.exam.name, *map(_interval, estimates.values())]
        for result, estimates in zip(results, found, strict=True)
    ]
    return ("task", *found[0]), rows


def form_table(results: Sequence[ExamResult]) -> Table:
    """Return two rows per task, greedy and drawn: the reward, and what completions look like."""
    rows = []
    for result in results:
        for way, evaluation in result.evaluations.items():
            reward = mean(known(rewards_of(evaluation)))
            cells = map(_number, [reward, *form(evaluation).values()])
            rows.append([f"{result.exam.name}\n{way}", *cells])
    return ("task", "reward", *FORM), rows


def comparison_table(found: Mapping[str, Sequence[PairedComparison]]) -> Table:
    """Return one row per task and measure: base, tuned model, difference and p."""
    rows = []
    for task, comparisons in found.items():
        for one in comparisons:
            numbers = [_number(one.base), _number(one.tuned), _interval(one.difference)]
            rows.append([task, one.measure, *numbers, f"{one.test.p:.2g}"])
    return ("task", "measure", "base", "tuned", "difference", "p"), rows


def how_tested(found: Mapping[str, Sequence[PairedComparison]]) -> str:
    """Return a sentence on how the p-values are computed."""
    exact = {one.test.exact for comparisons in found.values() for one in comparisons}
    ways = {True: "all signs", False: "100,000 seeded draws"}
    used = " or ".join(words for way, words in ways.items() if way in exact)
    return f"p: paired sign-flip test over prompts, {used}; brackets: 95 % intervals over prompts"


def frontier_table(results: Sequence[ExamResult], divergences: Divergences) -> Table:
    """Return one row per task and model: the mean reward of drawn completions, and the KL."""
    rows = []
    for result in sorted(results, key=lambda one: (one.exam.name, natural(one.model))):
        moved = divergences[result.model, result.exam.name]
        cells = [
            _number(mean(known(result.drawn_rewards))),
            _with_error(moved.per_completion, moved.error),
            _with_error(moved.per_token, moved.token_error),
            _number(form(result.evaluations["drawn"])["tokens"]),
        ]
        rows.append([result.model, result.exam.name, *cells])
    return ("model", "task", "reward", "KL", "KL per token", "tokens"), rows


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key with which checkpoint-2 comes before checkpoint-10."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _interval(one: Estimate) -> str:
    return f"{_number(one.value)}\n[{_bound(one.low)}, {_bound(one.high)}]"


def _bound(value: float) -> str:
    return _number(value) if math.isnan(value) or abs(value) >= 10 else f"{value:.2g}"


def _with_error(value: float, error: float) -> str:
    return f"{_number(value)}\n± {_number(error)}"
