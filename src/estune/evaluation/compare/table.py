"""What came out, in figures: a row a method, at its best learning rate, and below what differs between the methods.

All of it follows from what compare.json holds; docs/compare.md says how to read it.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from estune.common.visible import one_line, table_cell
from estune.evaluation.compare.methods import METHODS

Result = Mapping[str, Any]
Comparison = Mapping[str, Any]
Table = tuple[list[str], list[list[str]]]

BASELINE = "es-paper"
_SHAPE = {
    "length": "completions/mean_length",
    "empty": "completions/empty_ratio",
    "repeat": "completions/repetition",
    "distinct": "completions/distinct",
}


def results_table(comparison: Comparison) -> Table:
    """A row a method: what it earned, and what that took."""
    target, sets = _target(comparison), ["train", *(["held_out"] if _held_out(comparison) else [])]
    head = [
        "method",
        "rate",
        "seeds",
        *("reward" if name == "train" else "held out" for name in sets),
    ]
    head += [*([f"to {BASELINE}"] if target is not None else []), "tokens", "seconds", "memory"]
    return head, [
        _results(comparison, name, results, target, sets) for name, results in _shown(comparison)
    ]


def answers_table(comparison: Comparison) -> Table:
    """A row a method: what the answers look like in the end, on held-out prompts where there are some."""
    shown = _shown(comparison)
    extra = list(
        dict.fromkeys(
            name for _, results in shown for one in results for name in _extra(_final(one))
        )
    )
    figures = [*_SHAPE.values(), *extra]
    rows = [
        [name, *(_short(_median(_figure(one, figure) for one in results)) for figure in figures)]
        for name, results in shown
    ]
    return ["method", *_SHAPE, *extra], rows


def best(comparison: Comparison, method: str) -> list[Result]:
    """The runs of the method's best learning rate, one a seed: the highest median of what its training prompts earn in the end.

    A rate of which a seed is missing, or came to no number, counts only where no rate has all of them.
    """
    by_rate: dict[Any, list[Result]] = {}
    for one in comparison["runs"]:
        if one["method"] == method:
            by_rate.setdefault(one["learning_rate"], []).append(one)

    def ends(group: list[Result]) -> list[float]:
        return [
            value for one in group if not math.isnan(value := reward_at(one, comparison["tokens"]))
        ]

    return max(
        by_rate.values(),
        key=lambda group: (len(ends(group)), statistics.median(ends(group) or [-math.inf])),
        default=[],
    )


def at(
    points: Sequence[Mapping[str, Any]],
    tokens: float,
    figure: Callable[[Mapping[str, Any]], float | None],
) -> float:
    """A figure of a curve at `tokens`, on the straight line between the evaluations beside it; NaN before and after them all."""
    known = [(point["tokens"], value) for point in points if (value := figure(point)) is not None]
    for (left, low), (right, high) in pairwise(known):
        if left <= tokens <= right:
            return high if right == left else low + (high - low) * (tokens - left) / (right - left)
    return known[0][1] if known and known[0][0] == tokens else math.nan


def reward_at(result: Result, tokens: float, prompts: str = "train") -> float:
    """The reward of a run at `tokens`, or in the end where it ended before, its model's answers being empty."""
    points = result["points"]
    return at(
        points,
        min(tokens, points[-1]["tokens"]),
        lambda point: point.get(prompts, {}).get("reward"),
    )


def reached(result: Result, reward: float) -> float:
    """The tokens at which a run's training prompts first earn `reward`; NaN if they never do."""
    known = [
        (point["tokens"], value)
        for point in result["points"]
        if (value := point["train"]["reward"]) is not None
    ]
    if known and known[0][1] >= reward:
        return float(known[0][0])
    for (left, low), (right, high) in pairwise(known):
        if high >= reward:
            return float(left + (right - left) * (reward - low) / (high - low))
    return math.nan


def differences(comparison: Comparison) -> list[str]:
    """One line a method: what in its way of working differs from the others', beside the method itself."""
    return [f"{name}: {_way(results[0])}" for name, results in _shown(comparison)]


def markdown(comparison: Comparison) -> str:
    """The whole of compare.md."""
    lines = [f"# {one_line(title(comparison))}", ""]
    for head, rows in (results_table(comparison), answers_table(comparison)):
        lines += [_line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    lines += [*(f"- {note}" for note in notes(comparison)), "", "What differs:", ""]
    return "\n".join([*lines, *(f"- {one_line(line)}" for line in differences(comparison))]) + "\n"


def title(comparison: Comparison) -> str:
    return f"{comparison['model']}, {comparison['tokens']:,} tokens"


def notes(comparison: Comparison) -> list[str]:
    """What the columns are."""
    target = f"to {BASELINE}: tokens until the training reward is {BASELINE}'s final one; in brackets the seeds that got there, if not all"
    return [
        f"reward: of greedy answers to {comparison['eval_prompts']} training prompts at most, at {comparison['tokens']:,} tokens of "
        "training completions, on the line between the evaluations around; median over seeds, and least to most",
        *([target] if _target(comparison) is not None else []),
        "seconds: of training steps; memory: the most that was resident of a run's process; length in tokens",
    ]


def _shown(comparison: Comparison) -> list[tuple[str, list[Result]]]:
    """The methods of which something is finished, with the runs of their best rate."""
    return [
        (name, results) for name in comparison["methods"] if (results := best(comparison, name))
    ]


def _held_out(comparison: Comparison) -> bool:
    return any("held_out" in one["points"][-1] for one in comparison["runs"])


def _results(
    comparison: Comparison,
    name: str,
    results: Sequence[Result],
    target: float | None,
    sets: Sequence[str],
) -> list[str]:
    rate, ends = results[0]["learning_rate"], [one["points"][-1] for one in results]
    row = [
        name,
        "σ/2" if rate is None else rate if isinstance(rate, str) else f"{rate:g}",
        str(len(results)),
    ]
    row += [
        _spread([reward_at(one, comparison["tokens"], prompts) for one in results])
        for prompts in sets
    ]
    row += [_tokens_to(results, target)] if target is not None else []
    row += [
        _short(_median(end["tokens"] for end in ends)),
        _short(_median(end["seconds"] for end in ends)),
    ]
    return [*row, f"{_median(one['peak_bytes'] for one in results) / 2**30:.1f} GiB"]


def _target(comparison: Comparison) -> float | None:
    results = best(comparison, BASELINE)
    value = _median(reward_at(one, comparison["tokens"]) for one in results)
    return None if math.isnan(value) else value


def _tokens_to(results: Sequence[Result], reward: float) -> str:
    there = [tokens for one in results if not math.isnan(tokens := reached(one, reward))]
    if not there:
        return "–"
    return _short(_median(there)) + (
        "" if len(there) == len(results) else f" ({len(there)}/{len(results)})"
    )


def _final(result: Result) -> Mapping[str, float | None]:
    point = result["points"][-1]
    found: Mapping[str, float | None] = point.get("held_out", point["train"])
    return found


def _figure(result: Result, name: str) -> float:
    value = _final(result).get(name)
    return math.nan if value is None else value


def _extra(figures: Mapping[str, float | None]) -> list[str]:
    """What the reward functions logged, such as whether an answer is right, and their own means where they are several."""
    functions = [name for name in figures if name.startswith("rewards/") and name.endswith("/mean")]
    logged = [name for name in figures if "/" not in name and name not in ("reward", "runtime")]
    return [*logged, *(functions if len(functions) > 1 else [])]


def _way(result: Result) -> str:
    rl = METHODS[result["method"]].kind == "rl"
    warmth = (
        "greedy"
        if result["temperature"] == 0
        else f"drawn at temperature {result['temperature']:g}"
    )
    of = "completions" if rl else "members, one completion each,"
    how = "AdamW, gradients" if rl else "forward passes only"
    return f"{result['engine']} in {result['dtype']}, {warmth}, {result['samples']} {of} of {result['prompts']} prompts a step, {how}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _short(values[0])
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    lost = f", {len(values) - len(known)} without" if len(known) < len(values) else ""
    return f"{_short(_median(values))} ({_short(min(known))} to {_short(max(known))}{lost})"


def _median(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(table_cell, cells)) + " |"
