"""Plot reward against tokens and time, as SVG and PNG.

Dots are evaluations. Over seeds, the line is the median, and the band goes from lowest to highest.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from estune.evaluation.compare.methods import INSTALL
from estune.evaluation.compare.table import Comparison, RunResult, at, best, reward_at

# Colour-blind readers can tell these apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TITLES = {"train": "training prompts", "held_out": "held-out prompts"}


def missing() -> str | None:
    """Return why nothing can be plotted, or None if it can."""
    if find_spec("matplotlib"):
        return None
    return f"no plots without matplotlib: {INSTALL}, then --redraw"


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Plot `comparison` into files in `folder`, and return them. It needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = [
        name
        for name in _TITLES
        if any(name in point for one in comparison["runs"] for point in one["points"])
    ]
    figure, axes = pyplot.subplots(
        len(sets),
        2,
        figsize=(11, 1 + 3.6 * len(sets)),
        squeeze=False,
        sharey="row",
        layout="constrained",
    )
    for row, name in zip(axes, sets, strict=True):
        for color, method in zip(_COLORS * 9, comparison["methods"], strict=False):
            _add(row, comparison, method, name, color)
        row[0].set(xlabel="tokens of training completions", ylabel=f"reward, {_TITLES[name]}")
        row[1].set(xlabel="seconds of training")
        for axis in row:
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    if axes[0][0].lines:
        axes[0][0].legend(frameon=False)
    paths = [folder / "compare.svg", folder / "compare.png"]
    for path in paths:
        figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return paths


def marks(comparison: Comparison) -> list[int]:
    """Return the tokens at which curves are read: each multiple of eval_tokens, and the end."""
    return [*range(0, comparison["tokens"], comparison["eval_tokens"]), comparison["tokens"]]


def curve(
    comparison: Comparison, results: Sequence[RunResult], prompts: str
) -> list[dict[str, float]]:
    """Return tokens, median seconds, and median, lowest and highest reward at each of the marks.

    Only runs that reached a mark count there; marks that none reached are left out.
    """
    found = []
    for tokens in marks(comparison):
        reached = [one for one in results if one["points"][-1]["tokens"] >= tokens]
        rewards = [
            value for one in reached if not math.isnan(value := reward_at(one, tokens, prompts))
        ]
        if rewards:
            seconds = [at(one["points"], tokens, _seconds) for one in reached]
            found.append(
                {
                    "tokens": float(tokens),
                    "seconds": statistics.median(seconds),
                    "reward": statistics.median(rewards),
                    "low": min(rewards),
                    "high": max(rewards),
                }
            )
    return found


def _add(axes: Any, comparison: Comparison, method: str, prompts: str, color: str) -> None:
    """Plot a method into two axes: reward against tokens, and reward against seconds."""
    results = best(comparison, method)
    points = curve(comparison, results, prompts)
    if not points:
        return
    for axis, x in zip(axes, ("tokens", "seconds"), strict=True):
        along = [point[x] for point in points]
        axis.plot(
            along, [point["reward"] for point in points], color=color, linewidth=1.5, label=method
        )
        axis.fill_between(
            along,
            [p["low"] for p in points],
            [p["high"] for p in points],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
        for one in results:  # measured points, as dots
            known = [
                (point[x], value)
                for point in one["points"]
                if (value := point.get(prompts, {}).get("reward")) is not None
            ]
            axis.plot(*zip(*known, strict=True), color=color, marker="o", markersize=3, linewidth=0)


def _seconds(point: Mapping[str, Any]) -> float:
    return float(point["seconds"])
