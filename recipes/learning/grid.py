"""Compare values of σ, α and N in short runs of equal tokens, as a table and a picture.

  python recipes/learning/grid.py --config recipes/learning/conciseness.yaml \\
      --sigmas 0.005 0.01 0.02 --ratios 0.5 2 8 auto
  python recipes/learning/grid.py --config run.yaml --populations 8 16 32 --seeds 3 \\
      --tokens 14000 --output runs/grid --engine vllm

A cell is the reward on the training prompts, generated greedily, after --tokens: the median over
seeds. Each pair of σ and N is one `estune compare` in a folder of --output, so a grid that was
stopped resumes when it is started again. All other flags are settings of estune.
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

Cells = dict[tuple[int, float, str], float]  # N, σ, α/σ → reward


def main() -> int:
    options, settings = _options().parse_known_args()
    output = Path(options.output)
    cells: Cells = {}
    for members in options.populations:
        for sigma in options.sigmas:
            folder = output / f"population-{members}-sigma-{sigma:g}"
            done = subprocess.run(_command(options, settings, members, sigma, folder), check=False)
            if done.returncode:
                return done.returncode
            for ratio, value in _rewards(folder, sigma, options.ratios).items():
                cells[members, sigma, ratio] = value
    table = _table(options, cells)
    (output / "grid.md").write_text(table, encoding="utf-8")
    print(table)
    print(plots.missing() or f"drew {_draw(options, cells, output / 'grid.svg')}")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sigmas = [0.005, 0.01, 0.02]
    ratios = ["0.5", "2", "8", AUTO]
    add = parser.add_argument
    add("--sigmas", type=float, nargs="+", default=sigmas, help="σ [0.005 0.01 0.02]")
    add("--ratios", type=_ratio, nargs="+", default=ratios, help="α/σ, or auto [0.5 2 8 auto]")
    add("--populations", type=int, nargs="+", default=[16], help="members N [16]")
    add("--seeds", type=int, default=1, help="runs per cell [1]")
    add("--tokens", type=int, default=14_000, help="tokens per run [14000]")
    add("--output", default="runs/grid", help="folder [runs/grid]")
    return parser


def _ratio(word: str) -> str:
    try:
        if word == AUTO or 0 < float(word) < math.inf:
            return word
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be numbers above 0, or {AUTO}; got {word!r}")


def _command(
    options: argparse.Namespace, settings: list[str], members: int, sigma: float, folder: Path
) -> list[str]:
    rates = [_rate(sigma, ratio) for ratio in options.ratios if ratio != AUTO]
    flags = {
        "sigma": sigma,
        "population_size": members,
        "seeds": options.seeds,
        "tokens": options.tokens,
        "output": folder,
    }
    command = [sys.executable, "-m", "estune", "compare", *settings, "--methods"]
    if AUTO in options.ratios:
        command += ["es"]
    if rates:
        command += ["es-paper", "--learning_rates", f"es-paper={','.join(rates)}"]
    return command + [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def _rate(sigma: float, ratio: str) -> str:
    return f"{sigma * float(ratio):.6g}"


def _rewards(folder: Path, sigma: float, ratios: list[str]) -> dict[str, float]:
    """Return, for each α/σ, the median reward of its runs at the tokens of the comparison."""
    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    found = {}
    for ratio in ratios:
        rate = AUTO if ratio == AUTO else float(_rate(sigma, ratio))
        runs = [run for run in comparison["runs"] if run["learning_rate"] == rate]
        found[ratio] = statistics.median(reward_at(run, comparison["tokens"]) for run in runs)
    return found


def _table(options: argparse.Namespace, cells: Cells) -> str:
    heads = [f"α = {ratio}" if ratio == AUTO else f"α = {ratio} σ" for ratio in options.ratios]
    lines = [f"| N | σ | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    for members in options.populations:
        for sigma in options.sigmas:
            row = [f"{cells[members, sigma, ratio]:.4g}" for ratio in options.ratios]
            lines += [f"| {members} | {sigma:g} | {' | '.join(row)} |"]
    return "\n".join(lines) + "\n"


def _draw(options: argparse.Namespace, cells: Cells, path: Path) -> Path:
    """Draw one map per N, all in one scale: σ downwards, α/σ to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = len(options.populations)
    figure, axes = pyplot.subplots(
        1, count, figsize=(1.5 + 3.5 * count, 3.2), squeeze=False, layout="constrained"
    )
    known = [value for value in cells.values() if not math.isnan(value)]
    lowest = min(known)
    highest = max(known)
    for axis, members in zip(axes[0], options.populations, strict=True):
        rows = [
            [cells[members, sigma, ratio] for ratio in options.ratios] for sigma in options.sigmas
        ]
        image = axis.imshow(rows, cmap="viridis", aspect="auto", vmin=lowest, vmax=highest)
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                color = "white" if value < (lowest + highest) / 2 else "black"
                axis.text(x, y, f"{value:.3g}", ha="center", va="center", color=color)
        axis.set_xticks(range(len(options.ratios)), options.ratios)
        axis.set_yticks(range(len(options.sigmas)), [f"{sigma:g}" for sigma in options.sigmas])
        axis.set(xlabel="α/σ", ylabel="σ", title=f"N = {members}")
    figure.colorbar(image, ax=list(axes[0]), label=f"reward at {options.tokens:,} tokens")
    figure.savefig(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
