"""The results of a comparison in figures: one row per method, and what differs between methods.

Everything follows from compare.json; docs/compare.md explains how to read it.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from estune.common.visible import one_line, table_cell
from estune.evaluation.compare.methods import METHODS

RunResult = Mapping[str, Any]  # what a run's result.json holds
Comparison = Mapping[str, Any]  # what compare.json holds
Table = tuple[list[str], list[list[str]]]  # head, rows

BASELINE = "es-paper"
_SHAPE = {
    "length": "completions/mean_length",
    "empty": "completions/empty_ratio",
    "repeat": "completions/repetition",
    "distinct": "completions/distinct",
}


def results_table(comparison: Comparison) -> Table:
    """Return one row per method: its rewards, and its tokens, time and memory."""
    target = _target(comparison)
    rewards = {"train": "reward"}
    if any("held_out" in one["points"][-1] for one in comparison["runs"]):
        rewards["held_out"] = "held out"
    head = ["method", "rate", "seeds", *rewards.values()]
    head += [f"to {BASELINE}"] if target is not None else []
    head += ["tokens", "seconds", "memory"]
    rows = []
    for name, results in _shown(comparison):
        row = [name, _rate(results[0]["learning_rate"]), str(len(results))]
        for prompts in rewards:
            ends = [reward_at(one, comparison["tokens"], prompts) for one in results]
            row.append(_spread(ends))
        row += [_tokens_to(results, target)] if target is not None else []
        for figure in ("tokens", "seconds"):
            row.append(_short(_median(one["points"][-1][figure] for one in results)))
        row.append(f"{_median(one['peak_bytes'] for one in results) / 2**30:.1f} GiB")
        rows.append(row)
    return head, rows


def answers_table(comparison: Comparison) -> Table:
    """Return one row per method: what completions look like at the end, on held-out prompts."""
    shown = _shown(comparison)
    extra: dict[str, None] = {}
    for _, results in shown:
        for one in results:
            extra |= dict.fromkeys(_logged(_final(one)))
    figures = [*_SHAPE.values(), *extra]
    rows = [
        [name, *(_short(_median(_figure(one, figure) for one in results)) for figure in figures)]
        for name, results in shown
    ]
    return ["method", *_SHAPE, *extra], rows


def best(comparison: Comparison, method: str) -> list[RunResult]:
    """Return the runs of the method's best learning rate, one per seed.

    The best has the highest median of final training rewards. A rate with fewer final rewards than
    another, because a seed is missing or has none, loses to it.
    """
    by_rate: dict[Any, list[RunResult]] = {}
    for one in comparison["runs"]:
        if one["method"] == method:
            by_rate.setdefault(one["learning_rate"], []).append(one)

    def quality(group: list[RunResult]) -> tuple[int, float]:
        ends = numbers(reward_at(one, comparison["tokens"]) for one in group)
        return len(ends), statistics.median(ends or [-math.inf])

    return max(by_rate.values(), key=quality, default=[])


def at(
    points: Sequence[Mapping[str, Any]],
    tokens: float,
    figure: Callable[[Mapping[str, Any]], float | None],
) -> float:
    """Return a figure of a curve at `tokens`, interpolated linearly; NaN outside the curve."""
    known = [(point["tokens"], value) for point in points if (value := figure(point)) is not None]
    for (left, low), (right, high) in pairwise(known):
        if left <= tokens <= right:
            return high if right == left else low + (high - low) * (tokens - left) / (right - left)
    return known[0][1] if known and known[0][0] == tokens else math.nan


def reward_at(result: RunResult, tokens: float, prompts: str = "train") -> float:
    """Return a run's reward at `tokens`, or at its end if it ended before."""
    points = result["points"]
    until = min(tokens, points[-1]["tokens"])
    return at(points, until, lambda point: point.get(prompts, {}).get("reward"))


def reached(result: RunResult, reward: float) -> float:
    """Return the tokens at which a run's training reward first is `reward`; NaN if it never is."""
    known = [(point["tokens"], point["train"]["reward"]) for point in result["points"]]
    known = [(tokens, value) for tokens, value in known if value is not None]
    if known and known[0][1] >= reward:
        return float(known[0][0])
    for (left, low), (right, high) in pairwise(known):
        if high >= reward:
            return float(left + (right - left) * (reward - low) / (high - low))
    return math.nan


def differences(comparison: Comparison) -> list[str]:
    """Return one line per method on how its runs work."""
    return [f"{name}: {_way(results[0])}" for name, results in _shown(comparison)]


def markdown(comparison: Comparison) -> str:
    """Return the content of compare.md."""
    lines = [f"# {one_line(title(comparison))}", ""]
    for head, rows in (results_table(comparison), answers_table(comparison)):
        lines += [_line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    lines += [*(f"- {note}" for note in notes(comparison)), "", "What differs:", ""]
    lines += [f"- {one_line(line)}" for line in differences(comparison)]
    return "\n".join(lines) + "\n"


def title(comparison: Comparison) -> str:
    """Return the heading of the tables."""
    return f"{comparison['model']}, {comparison['tokens']:,} tokens"


def notes(comparison: Comparison) -> list[str]:
    """Return the meaning of the columns."""
    prompts = comparison["eval_prompts"]
    reward = (
        f"reward: of greedy completions of at most {prompts} training prompts, at "
        f"{comparison['tokens']:,} tokens of training completions, interpolated between "
        "evaluations; median over seeds, and lowest to highest"
    )
    target = (
        f"to {BASELINE}: tokens until the training reward is {BASELINE}'s final one; "
        "in brackets the seeds that got there, if not all"
    )
    costs = "seconds: of training steps; memory: a run's peak of resident memory; length in tokens"
    return [reward, *([target] if _target(comparison) is not None else []), costs]


def _shown(comparison: Comparison) -> list[tuple[str, list[RunResult]]]:
    """Return the methods with finished runs, and the runs of their best rates."""
    found = [(name, best(comparison, name)) for name in comparison["methods"]]
    return [(name, results) for name, results in found if results]


def _target(comparison: Comparison) -> float | None:
    results = best(comparison, BASELINE)
    value = _median(reward_at(one, comparison["tokens"]) for one in results)
    return None if math.isnan(value) else value


def _tokens_to(results: Sequence[RunResult], reward: float) -> str:
    arrived = numbers(reached(one, reward) for one in results)
    some = f" ({len(arrived)}/{len(results)})" if 0 < len(arrived) < len(results) else ""
    return f"{_short(_median(arrived))}{some}"


def _rate(learning_rate: float | str | None) -> str:
    if learning_rate is None:
        return "σ/2"
    return learning_rate if isinstance(learning_rate, str) else f"{learning_rate:g}"


def _final(result: RunResult) -> Mapping[str, float | None]:
    point = result["points"][-1]
    found: Mapping[str, float | None] = point.get("held_out", point["train"])
    return found


def _figure(result: RunResult, name: str) -> float:
    value = _final(result).get(name)
    return math.nan if value is None else value


def _logged(figures: Mapping[str, float | None]) -> list[str]:
    """Return what reward functions logged, and their own means if there are several."""
    functions = [name for name in figures if name.startswith("rewards/") and name.endswith("/mean")]
    logged = [name for name in figures if "/" not in name and name not in ("reward", "runtime")]
    return [*logged, *(functions if len(functions) > 1 else [])]


def _way(result: RunResult) -> str:
    rl = METHODS[result["method"]].kind == "rl"
    temperature = result["temperature"]
    drawn = "greedy" if temperature == 0 else f"drawn at temperature {temperature:g}"
    each = "completions" if rl else "members, one completion each,"
    how = "AdamW, gradients" if rl else "forward passes only"
    samples = f"{result['samples']} {each} of {result['prompts']} prompts per step"
    return f"{result['engine']} in {result['dtype']}, {drawn}, {samples}, {how}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return _short(values[0])
    known = numbers(values) or [math.nan]
    lost = f", {len(values) - len(known)} without" if len(known) < len(values) else ""
    return f"{_short(_median(known))} ({_short(min(known))} to {_short(max(known))}{lost})"


def numbers(values: Iterable[float]) -> list[float]:
    """Return `values` without NaN."""
    return [value for value in values if not math.isnan(value)]


def _median(values: Iterable[float]) -> float:
    return statistics.median(numbers(values) or [math.nan])


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(table_cell, cells)) + " |"
