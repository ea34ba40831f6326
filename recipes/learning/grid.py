"""How much σ, α and N matter: short runs at equal tokens, as a table and a picture of the grid.

  python recipes/learning/grid.py --config recipes/learning/conciseness.yaml --sigmas 0.005 0.01 0.02 --ratios 0.5 2 8 auto
  python recipes/learning/grid.py --config run.yaml --populations 8 16 32 --seeds 3 --tokens 14000 --output runs/grid --engine vllm

A cell is the median over seeds of what the training prompts earn, greedily, after `--tokens`. Every σ and N is a comparison of its
own (`estune compare`) in a folder of the output, so that a grid that was stopped goes on. Further flags are settings of estune.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

from estune.evaluation.compare import plots
from estune.evaluation.compare.table import reward_at

AUTO = "auto"


def main() -> int:
    options, settings = _options().parse_known_args()
    output = Path(options.output)
    cells: dict[tuple[int, float, str], float] = {}  # N, σ, α/σ → reward
    for members in options.populations:
        for sigma in options.sigmas:
            folder = output / f"population-{members}-sigma-{sigma:g}"
            done = subprocess.run(_command(options, settings, members, sigma, folder), check=False)
            if done.returncode:
                return done.returncode
            cells |= {
                (members, sigma, ratio): value
                for ratio, value in _rewards(folder, sigma, options.ratios).items()
            }
    table = _table(options, cells)
    (output / "grid.md").write_text(table, encoding="utf-8")
    print(table)
    print(plots.missing() or f"drawn: {_draw(options, cells, output / 'grid.svg')}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--sigmas", type=float, nargs="+", default=[0.005, 0.01, 0.02], help="[0.005 0.01 0.02]"
    )
    parser.add_argument(
        "--ratios",
        type=_ratio,
        nargs="+",
        default=["0.5", "2", "8", AUTO],
        help="α/σ, or auto [0.5 2 8 auto]",
    )
    parser.add_argument("--populations", type=int, nargs="+", default=[16], help="members N [16]")
    parser.add_argument("--seeds", type=int, default=1, help="runs a cell [1]")
    parser.add_argument("--tokens", type=int, default=14_000, help="of each run [14000]")
    parser.add_argument("--output", default="runs/grid", help="folder [runs/grid]")
    return parser


def _ratio(word: str) -> str:
    try:
        known = word == AUTO or 0 < float(word) < math.inf
    except ValueError:
        known = False
    if not known:
        raise argparse.ArgumentTypeError(f"must be numbers above 0, or {AUTO}; there is {word!r}")
    return word


def _command(
    options: argparse.Namespace, settings: list[str], members: int, sigma: float, folder: Path
) -> list[str]:
    rates = ",".join(f"{sigma * float(ratio):.6g}" for ratio in options.ratios if ratio != AUTO)
    methods = (["es"] if AUTO in options.ratios else []) + (["es-paper"] if rates else [])
    command = [
        sys.executable,
        "-m",
        "estune",
        "compare",
        "--methods",
        *methods,
        "--output",
        str(folder),
    ]
    command += ["--learning_rates", f"es-paper={rates}"] if rates else []
    command += [
        "--sigma",
        str(sigma),
        "--population_size",
        str(members),
        "--seeds",
        str(options.seeds),
        "--tokens",
        str(options.tokens),
    ]
    return command + settings


def _rewards(folder: Path, sigma: float, ratios: list[str]) -> dict[str, float]:
    """α/σ → the median reward of its runs, at the tokens of the comparison."""
    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))

    def runs(ratio: str) -> list[float]:
        wanted = AUTO if ratio == AUTO else float(f"{sigma * float(ratio):.6g}")
        return [
            reward_at(run, comparison["tokens"])
            for run in comparison["runs"]
            if run["learning_rate"] == wanted
        ]

    return {ratio: statistics.median(runs(ratio)) for ratio in ratios}


def _table(options: argparse.Namespace, cells: dict[tuple[int, float, str], float]) -> str:
    lines = [
        f"| N | σ | {' | '.join(f'α = {r}' if r == AUTO else f'α = {r} σ' for r in options.ratios)} |"
    ]
    lines += ["|" + "---|" * (2 + len(options.ratios))]
    for members in options.populations:
        for sigma in options.sigmas:
            row = [f"{cells[members, sigma, ratio]:.4g}" for ratio in options.ratios]
            lines += [f"| {members} | {sigma:g} | {' | '.join(row)} |"]
    return "\n".join(lines) + "\n"


def _draw(
    options: argparse.Namespace, cells: dict[tuple[int, float, str], float], path: Path
) -> Path:
    """One map an N: σ downwards, α/σ to the right, all in one scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(options.populations)
    figure, axes = pyplot.subplots(
        1, count, figsize=(1.5 + 3.5 * count, 3.2), squeeze=False, layout="constrained"
    )
    known = [value for value in cells.values() if not math.isnan(value)]
    scale = {"vmin": min(known), "vmax": max(known)}
    for axis, members in zip(axes[0], options.populations, strict=True):
        rows = [
            [cells[members, sigma, ratio] for ratio in options.ratios] for sigma in options.sigmas
        ]
        image = axis.imshow(rows, cmap="viridis", aspect="auto", **scale)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                axis.text(
                    x,
                    y,
                    f"{value:.3g}",
                    ha="center",
                    va="center",
                    color="white" if value < sum(scale.values()) / 2 else "black",
                )
        axis.set(
            xticks=range(len(options.ratios)),
            xticklabels=options.ratios,
            xlabel="α/σ",
            title=f"N = {members}",
        )
        axis.set(
            yticks=range(len(options.sigmas)),
            yticklabels=[f"{sigma:g}" for sigma in options.sigmas],
            ylabel="σ",
        )
    figure.colorbar(image, ax=list(axes[0]), label=f"reward at {options.tokens:,} tokens")
    figure.savefig(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
