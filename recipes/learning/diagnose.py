"""What a run's journal tells about its search, a row a step; nothing is generated, unless --kl asks for it.

  python recipes/learning/diagnose.py runs/learning/conciseness
  python recipes/learning/diagnose.py runs/learning/conciseness --kl 2 --engine vllm

promised, gained   what the update was to gain to first order, and what the centre did gain (learning_rate: auto)
spread, drop       standard deviation of the members' fitness, shaped as it is; the reward that they lose against the centre on the average
slope              the part of spread² that is odd in ε, as a slope is; antithetic pairs alone tell it
dimension          2·drop²/variance of the part that is even: how many directions share the curvature, (tr H)²/tr H²
distance           of θ from the base, in parts of the base's root mean square
cosine             between the update and the one before
KL                 nats a token that the model says otherwise than the base, from --kl drawn answers a held-out prompt

What the figures mean is in docs/learning.md. Further flags are settings of `estune eval`.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from estune.common.visible import one_line
from estune.errors import EstuneError
from estune.noise import stream
from estune.noise.kernels import update
from estune.run.distance import travelled
from estune.theta.checkpoint import Checkpoint, open_checkpoint, resolve
from estune.theta.journal import Journal, Step
from estune.theta.parameters import layout

Row = dict[str, float | None]
COLUMNS = (
    "step",
    "σ",
    "α",
    "promised",
    "gained",
    "spread",
    "drop",
    "slope",
    "dimension",
    "distance",
    "cosine",
    "KL",
)


def main() -> int:
    options, settings = _options().parse_known_args()
    folder = Path(options.run)
    try:
        journal = Journal.open(folder)
        config = journal.header.config
        print(
            one_line(f"the base model, as the journal names it: {journal.header.model}"),
            file=sys.stderr,
        )
        trusted = options.trust_remote_code
        base = open_checkpoint(
            resolve(journal.header.model, config.get("model_revision"), trust_remote_code=trusted)
        )
        names = layout(base, trust_remote_code=trusted).targets(config.get("target_parameters"))
    except EstuneError as error:
        print(error, file=sys.stderr)
        return 2
    raw = config.get("prompt_shaping") is None
    rows = [
        _told(step, antithetic=bool(config.get("antithetic")), raw=raw) for step in journal.steps
    ]
    size = _root_mean_square(base, names)
    for count, (row, cosine) in enumerate(
        zip(rows, _cosines(journal.steps, base, names), strict=True), 1
    ):
        row |= {"distance": travelled(journal.steps[:count]) / size, "cosine": cosine}
    if options.kl:
        try:
            trust = [
                "--trust_remote_code",
                "true" if trusted else "false",
            ]  # never what the run's own config.yaml says
            for row, kl in zip(
                rows, _divergences(folder, journal, options.kl, settings, trust), strict=True
            ):
                row["KL"] = kl
        except subprocess.CalledProcessError as error:
            return error.returncode  # it said why
    print(_table(rows))
    print(_in_all(rows))
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, with its journal.jsonl")
    parser.add_argument(
        "--kl",
        type=int,
        default=0,
        metavar="N",
        help="draw N answers a held-out prompt from every step's model",
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code that comes with the base model"
    )
    return parser


def _told(step: Step, *, antithetic: bool, raw: bool) -> Row:
    """What the journal's line itself says. Fitness that is shaped prompt by prompt is not in the units of the drop, so not `raw`."""
    rewards = [reward for reward in step.rewards if reward is not None]
    control = step.control or {}
    row: Row = {
        "step": step.step,
        "σ": step.sigma,
        "α": step.notes["metrics"].get("learning_rate"),
        "spread": statistics.pstdev(rewards) if rewards else None,
    }
    row |= {"drop": control.get("drop"), "promised": control.get("predicted")}
    if control.get("alpha"):
        row["gained"] = control["gains"][control["tried"].index(control["alpha"])]
    halves = zip(step.rewards[::2], step.rewards[1::2], strict=True) if antithetic else ()
    pairs = [(a, b) for a, b in halves if a is not None and b is not None]
    if len(pairs) > 1:
        odd, even = [(a - b) / 2 for a, b in pairs], [(a + b) / 2 for a, b in pairs]
        slope, curve = statistics.fmean(value**2 for value in odd), statistics.variance(even)
        row["slope"] = slope / (slope + curve) if slope + curve else None
        row["curve"] = curve
        row["dimension"] = (
            2 * row["drop"] ** 2 / curve if raw and row["drop"] is not None and curve else None
        )
    return row


def _cosines(steps: list[Step], base: Checkpoint, names: list[str]) -> list[float | None]:
    """Between each update and the one before, over all weights; None where one of the two did not move."""
    dots = [0.0] * len(steps)
    squares = [0.0] * len(steps)
    for name in names:
        before = None
        for number, step in enumerate(steps):
            delta = torch.zeros(math.prod(base.tensors[name].shape))
            update(
                delta,
                step.coefficients,
                step.seeds[: len(step.coefficients)],
                stream(name, correlated=step.noise == "correlated"),
                0,
            )
            squares[number] += float(delta.double() @ delta.double())
            if before is not None:
                dots[number] += float(delta.double() @ before.double())
            before = delta
    lengths = [math.sqrt(value) for value in squares]
    return [
        dots[i] / (lengths[i] * lengths[i - 1]) if i and lengths[i] and lengths[i - 1] else None
        for i in range(len(steps))
    ]


def _root_mean_square(base: Checkpoint, names: list[str]) -> float:
    tensors = [base.read(name).double() for name in names]
    return math.sqrt(
        math.fsum(float(tensor.square().sum()) for tensor in tensors)
        / sum(tensor.numel() for tensor in tensors)
    )


def _divergences(
    run: Path, journal: Journal, count: int, settings: list[str], trust: list[str]
) -> Iterator[float]:
    """KL to the base, a token, of the models after each step, which `estune replay` makes and `estune eval` measures."""
    estune = [sys.executable, "-m", "estune"]
    for step in range(1, journal.last + 1):
        with tempfile.TemporaryDirectory(dir=run) as scratch:
            model, figures = str(Path(scratch) / "model"), Path(scratch) / "figures.json"
            subprocess.run(
                [*estune, "replay", str(run), "--step", str(step), "--output", model, *trust],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            words = [
                "--config",
                str(run / "config.yaml"),
                "--model",
                model,
                "--base",
                journal.header.model,
                "--kl",
            ]
            words += ["--num_generations", str(count), "--figures", str(figures), *settings, *trust]
            subprocess.run([*estune, "eval", *words], check=True, stdout=subprocess.DEVNULL)
            yield next(
                row["kl a token"]
                for row in json.loads(figures.read_text())
                if row["model"] == model
            )


def _table(rows: list[Row]) -> str:
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_shown(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _in_all(rows: list[Row]) -> str:
    """The ratios over all steps: of sums, as single steps are noisy."""
    made = [row for row in rows if row.get("gained") is not None and row["promised"]]
    found: list[str] = []
    if made:
        found.append(
            f"gained of what was promised: {_sum(made, 'gained') / _sum(made, 'promised'):.2f}"
        )
    if any(row.get("slope") is not None for row in rows):
        slopes = [row["slope"] for row in rows if row.get("slope") is not None]
        found.append(f"slope in spread²: {statistics.fmean(slopes):.2f}")
    curved = [row for row in rows if row.get("dimension") is not None]
    if curved:
        found.append(
            f"dimension: {2 * sum(row['drop'] ** 2 for row in curved) / _sum(curved, 'curve'):.3g}"
        )
    return "over all steps: " + (
        ", ".join(found) or "nothing, as neither learning_rate: auto nor antithetic pairs were used"
    )


def _sum(rows: list[Row], name: str) -> float:
    return math.fsum(row[name] or 0.0 for row in rows)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
