"""Tables of a comparison's results, with one row per method; all numbers are from compare.json.

docs/compare.md explains how to read them.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from estune.common.visible import one_line, table_cell
from estune.evaluation.compare.methods import METHODS

RunResult = Mapping[str, Any]  # the content of a run's result.json
Comparison = Mapping[str, Any]  # the content of compare.json
Table = tuple[list[str], list[list[str]]]  # head, rows

BASELINE = "es-paper"
_FORM = {  # column → metric
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
        for cost in ("tokens", "seconds"):
            row.append(_short(_median(one["points"][-1][cost] for one in results)))
        row.append(f"{_median(one['peak_bytes'] for one in results) / 2**30:.1f} GiB")
        rows.append(row)
    return head, rows


def answers_table(comparison: Comparison) -> Table:
    """Return one row per method: what the final model's completions look like.

    They are of held-out prompts if there are any, else of training prompts.
    """
    shown = _shown(comparison)
    logged: dict[str, None] = {}  # an ordered set
    for _, results in shown:
        for one in results:
            logged |= dict.fromkeys(_logged(_final_metrics(one)))
    metrics = [*_FORM.values(), *logged]
    rows = []
    for name, results in shown:
        medians = [_median(_final_metric(one, metric) for one in results) for metric in metrics]
        rows.append([name, *map(_short, medians)])
    return ["method", *_FORM, *logged], rows


def best(comparison: Comparison, method: str) -> list[RunResult]:
    """Return the runs of the method's best learning rate, one per seed.

    The best rate is the one with the most seeds that have a final reward on training prompts; among
    these, the one with the highest median of these rewards.
    """
    by_rate: dict[Any, list[RunResult]] = {}
    for one in comparison["runs"]:
        if one["method"] == method:
            by_rate.setdefault(one["learning_rate"], []).append(one)

    def quality(group: list[RunResult]) -> tuple[int, float]:
        ends = _known(reward_at(one, comparison["tokens"]) for one in group)
        return len(ends), statistics.median(ends or [-math.inf])

    return max(by_rate.values(), key=quality, default=[])


def at(
    points: Sequence[Mapping[str, Any]],
    tokens: float,
    metric: Callable[[Mapping[str, Any]], float | None],
) -> float:
    """Return `metric` at `tokens`, interpolated linearly between points; NaN outside them."""
    known = [(point["tokens"], value) for point in points if (value := metric(point)) is not None]
    for (left, low), (right, high) in pairwise(known):
        if left <= tokens <= right:
            return high if right == left else low + (high - low) * (tokens - left) / (right - left)
    return known[0][1] if known and known[0][0] == tokens else math.nan


def reward_at(result: RunResult, tokens: float, prompts: str = "train") -> float:
    """Return a run's reward at `tokens`, or at the run's end if that came earlier."""
    points = result["points"]
    until = min(tokens, points[-1]["tokens"])
    return at(points, until, lambda point: point.get(prompts, {}).get("reward"))


def reached(result: RunResult, reward: float) -> float:
    """Return the tokens after which a run first had the training reward `reward`, or NaN."""
    known = [(point["tokens"], point["train"]["reward"]) for point in result["points"]]
    known = [(tokens, value) for tokens, value in known if value is not None]
    if known and known[0][1] >= reward:
        return float(known[0][0])
    for (left, low), (right, high) in pairwise(known):
        if high >= reward:
            return float(left + (right - left) * (reward - low) / (high - low))
    return math.nan


def differences(comparison: Comparison) -> list[str]:
    """Return one line per method: engine, dtype, sampling, completions per step."""
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
    """Return the heading above the tables."""
    return f"{comparison['model']}, {comparison['tokens']:,} tokens"


def notes(comparison: Comparison) -> list[str]:
    """Return lines that explain the columns."""
    prompts = comparison["eval_prompts"]
    reward = (
        f"reward: of greedy completions of at most {prompts} training prompts, at "
        f"{comparison['tokens']:,} tokens of training completions, interpolated between "
        "evaluations; median over seeds, and lowest to highest"
    )
    target = (
        f"to {BASELINE}: tokens until the training reward is {BASELINE}'s final one; "
        "in brackets how many of the seeds reached it, if not all did"
    )
    costs = "seconds: of training steps; memory: a run's peak of resident memory; length in tokens"
    return [reward, *([target] if _target(comparison) is not None else []), costs]


def _shown(comparison: Comparison) -> list[tuple[str, list[RunResult]]]:
    """Return the methods with finished runs, and the runs of their best rates."""
    found = [(name, best(comparison, name)) for name in comparison["methods"]]
    return [(name, results) for name, results in found if results]


def _target(comparison: Comparison) -> float | None:
    """Return the final training reward of BASELINE, which the other methods are to reach."""
    results = best(comparison, BASELINE)
    value = _median(reward_at(one, comparison["tokens"]) for one in results)
    return None if math.isnan(value) else value


def _tokens_to(results: Sequence[RunResult], reward: float) -> str:
    arrived = _known(reached(one, reward) for one in results)
    some = f" ({len(arrived)}/{len(results)})" if 0 < len(arrived) < len(results) else ""
    return f"{_short(_median(arrived))}{some}"


def _rate(learning_rate: float | str | None) -> str:
    if learning_rate is None:
        return "σ/2"
    return learning_rate if isinstance(learning_rate, str) else f"{learning_rate:g}"


def _final_metrics(result: RunResult) -> Mapping[str, float | None]:
    """Return the metrics of a run's last evaluation, on held-out prompts if there are any."""
    point = result["points"][-1]
    found: Mapping[str, float | None] = point.get("held_out", point["train"])
    return found


def _final_metric(result: RunResult, name: str) -> float:
    value = _final_metrics(result).get(name)
    return math.nan if value is None else value


def _logged(metrics: Mapping[str, float | None]) -> list[str]:
    """Return the names of what reward functions logged, and of their means if there are several."""
    means = [name for name in metrics if name.startswith("rewards/") and name.endswith("/mean")]
    logged = [name for name in metrics if "/" not in name and name not in ("reward", "runtime")]
    return [*logged, *(means if len(means) > 1 else [])]


def _way(result: RunResult) -> str:
    rl = METHODS[result["method"]].kind == "rl"
    temperature = result["temperature"]
    drawn = "greedy" if temperature == 0 else f"drawn at temperature {temperature:g}"
    each = "completions" if rl else "members, one completion each,"
    how = "AdamW, gradients" if rl else "forward passes only"
    samples = f"{result['samples']} {each} of {result['prompts']} prompts per step"
    return f"{result['engine']} in {result['dtype']}, {drawn}, {samples}, {how}"


def _spread(values: Sequence[float]) -> str:
    """Return the median, the lowest and the highest value, and how many are missing."""
    if len(values) == 1:
        return _short(values[0])
    known = _known(values) or [math.nan]
    missing = f", {len(values) - len(known)} without" if len(known) < len(values) else ""
    return f"{_short(_median(values))} ({_short(min(known))} to {_short(max(known))}{missing})"


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _median(values: Iterable[float]) -> float:
    known = _known(values)
    return statistics.median(known) if known else math.nan


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(table_cell, cells)) + " |"
