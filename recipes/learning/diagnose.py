"""Show what each step of a run gained and how far it moved θ, from the run's journal.

  python recipes/learning/diagnose.py runs/learning/conciseness
  python recipes/learning/diagnose.py runs/learning/conciseness --kl 2 --engine vllm

promised, gained   the gain that a step's update should bring to first order, and the gain that θ
                   had (learning_rate: auto)
spread             standard deviation of the members' fitness, as the journal has it
drop               mean reward of θ − mean reward of the members
slope              the part of spread² that is odd in ε, as a slope is (antithetic pairs only)
dimension          2·drop² ÷ the variance of the even part: the number of directions that share the
                   curvature, (tr H)²/tr H²
distance           distance of θ from the base model ÷ the base's root mean square
cosine             cosine between the update and the one before
KL                 nats per token to the base model, from --kl completions per held-out prompt

docs/learning.md explains how to read these figures. Nothing is generated without --kl. All other
flags are settings of `estune eval`.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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

Figures = dict[str, float | None]  # of one step, by column
COLUMNS = (
    *("step", "σ", "α", "promised", "gained", "spread", "drop", "slope", "dimension"),
    *("distance", "cosine", "KL"),
)


def main() -> int:
    options, settings = _options().parse_known_args()
    folder = Path(options.run)
    trusted = options.trust_remote_code
    try:
        journal = Journal.open(folder)
        config = journal.header.config
        base_name = journal.header.model
        print(one_line(f"base model, from the journal: {base_name}"), file=sys.stderr)
        found = resolve(base_name, config.get("model_revision"), trust_remote_code=trusted)
        base = open_checkpoint(found)
        names = layout(base, trust_remote_code=trusted).targets(config.get("target_parameters"))
    except EstuneError as error:
        print(error, file=sys.stderr)
        return 2
    rows = [_from_journal(step, config) for step in journal.steps]
    _add_movement(rows, journal.steps, base, names)
    if options.kl:
        # trust is never taken from the run's own config.yaml
        trust = ["--trust_remote_code", "true" if trusted else "false"]
        settings += ["--num_generations", str(options.kl), *trust]
        try:
            for row, kl in zip(rows, _kls(folder, journal, settings, trust), strict=True):
                row["KL"] = kl
        except subprocess.CalledProcessError as error:
            return error.returncode  # the command has printed why
    print(_table(rows))
    print(_summary(rows))
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="a run's folder, with its journal.jsonl")
    add(
        "--kl",
        type=int,
        default=0,
        metavar="N",
        help="sample N completions per held-out prompt from the model after each step",
    )
    add(
        "--trust_remote_code", action="store_true", help="run code from the base model's repository"
    )
    return parser


def _from_journal(step: Step, config: Mapping[str, Any]) -> Figures:
    """Return the figures that a journal's line gives."""
    fitness = [value for value in step.rewards if value is not None]
    control = step.control or {}
    row: Figures = {
        "step": step.step,
        "σ": step.sigma,
        "α": step.notes["metrics"].get("learning_rate"),
        "spread": statistics.pstdev(fitness) if fitness else None,
        "drop": control.get("drop"),
        "promised": control.get("predicted"),
    }
    if control.get("alpha"):
        row["gained"] = control["gains"][control["tried"].index(control["alpha"])]
    if config.get("antithetic"):
        row |= _of_pairs(step.rewards)
    # fitness shaped per prompt is in other units than the drop
    drop, curve = row["drop"], row.get("curve")
    if config.get("prompt_shaping") is None and drop is not None and curve:
        row["dimension"] = 2 * drop**2 / curve
    return row


def _of_pairs(fitness: Sequence[float | None]) -> Figures:
    """Return the slope and `curve`, the variance of the even part, if there are two pairs."""
    halves = zip(fitness[::2], fitness[1::2], strict=True)
    pairs = [(plus, minus) for plus, minus in halves if plus is not None and minus is not None]
    if len(pairs) < 2:
        return {}
    odd = statistics.fmean(((plus - minus) / 2) ** 2 for plus, minus in pairs)
    even = statistics.variance((plus + minus) / 2 for plus, minus in pairs)
    return {"slope": odd / (odd + even) if odd + even else None, "curve": even}


def _add_movement(
    rows: list[Figures], steps: Sequence[Step], base: Checkpoint, names: Sequence[str]
) -> None:
    """Add distance and cosine to the rows."""
    size = _root_mean_square(base, names)
    cosines = _cosines(steps, base, names)
    for count, (row, cosine) in enumerate(zip(rows, cosines, strict=True), 1):
        row["distance"] = travelled(steps[:count]) / size
        row["cosine"] = cosine


def _cosines(steps: Sequence[Step], base: Checkpoint, names: Sequence[str]) -> list[float | None]:
    """Return the cosine between each update and the one before; None if either of them is zero."""
    dots = [0.0] * len(steps)
    squares = [0.0] * len(steps)
    for name in names:
        before = torch.zeros(math.prod(base.tensors[name].shape), dtype=torch.float64)
        for number, step in enumerate(steps):
            delta = _delta(step, name, len(before))
            squares[number] += float(delta @ delta)
            dots[number] += float(delta @ before)
            before = delta
    cosines: list[float | None] = []
    for number, dot in enumerate(dots):
        length = math.sqrt(squares[number] * squares[number - 1]) if number else 0.0
        cosines.append(dot / length if length else None)
    return cosines


def _delta(step: Step, name: str, size: int) -> torch.Tensor:
    """Return what the step's update added to a parameter, in fp64."""
    delta = torch.zeros(size)
    seeds = step.seeds[: len(step.coefficients)]
    noise = stream(name, correlated=step.noise == "correlated")
    update(delta, step.coefficients, seeds, noise, 0)
    return delta.double()


def _root_mean_square(base: Checkpoint, names: Sequence[str]) -> float:
    tensors = [base.read(name).double() for name in names]
    total = math.fsum(float(tensor.square().sum()) for tensor in tensors)
    return math.sqrt(total / sum(tensor.numel() for tensor in tensors))


def _kls(
    run: Path, journal: Journal, settings: Sequence[str], trust: Sequence[str]
) -> Iterator[float]:
    """Yield the KL per token of the model after each step, which `estune replay` makes.

    Raises:
        subprocess.CalledProcessError: a command failed; it printed why.
    """
    for step in range(1, journal.last + 1):
        with tempfile.TemporaryDirectory(dir=run) as scratch:
            model = f"{scratch}/model"
            figures = Path(scratch) / "figures.json"
            _estune("replay", str(run), "--step", str(step), "--output", model, *trust)
            what = ["--model", model, "--base", journal.header.model, "--kl"]
            files = ["--config", str(run / "config.yaml"), "--figures", str(figures)]
            _estune("eval", *files, *what, *settings)
            measured = json.loads(figures.read_text())
        yield next(row["kl a token"] for row in measured if row["model"] == model)


def _estune(*words: str) -> None:
    command = [sys.executable, "-m", "estune", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _table(rows: list[Figures]) -> str:
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(name)) for name in columns) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}"


def _summary(rows: list[Figures]) -> str:
    """Return ratios of sums over all steps, because those of single steps are noisy."""
    found: list[str] = []
    updated = [row for row in rows if row.get("gained") is not None and row["promised"]]
    if updated:
        gained = _sum(updated, "gained") / _sum(updated, "promised")
        found.append(f"gained of what was promised: {gained:.2f}")
    slopes = [slope for row in rows if (slope := row.get("slope")) is not None]
    if slopes:
        found.append(f"slope in spread²: {statistics.fmean(slopes):.2f}")
    curved = [row for row in rows if row.get("dimension") is not None]
    if curved:
        drops = math.fsum((row["drop"] or 0.0) ** 2 for row in curved)
        found.append(f"dimension: {2 * drops / _sum(curved, 'curve'):.3g}")
    nothing = "nothing, because the run used neither learning_rate: auto nor antithetic pairs"
    return "over all steps: " + (", ".join(found) or nothing)


def _sum(rows: list[Figures], name: str) -> float:
    return math.fsum(row[name] or 0.0 for row in rows)


if __name__ == "__main__":
    sys.exit(main())
