"""Train with two recipes and two step sizes on one GPU, all four runs at once.

python -m benchmarks.gpu_all.learn FOLDER MODEL SECONDS [--cpu]

The runs share the GPU, because a run of a small model keeps its CPU core busier than the GPU. Each
is an `estune compare` of up to a million tokens. After SECONDS they are stopped, and how far each
got is printed. Started again, the runs resume in FOLDER.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.gpu_all import print_figures

RECIPES = {  # the less known one first
    "sparse": "recipes/learning/sparse.yaml",
    "dense": "recipes/learning/conciseness.yaml",
}
METHODS = ("es", "es-paper")
STOPPING = 20  # seconds for the runs to stop
Settings = dict[str, int | str]

ON_GPU: Settings = {
    "tokens": 1_000_000,
    "eval_tokens": 20_000,
    "device": "cuda",
    "reward_workers": 4,
}
ON_CPU: Settings = {
    "tokens": 16,
    "eval_tokens": 16,
    "device": "cpu",
    "reward_workers": 1,
    "population_size": 2,
    "max_train_samples": 2,
    "max_completion_length": 4,
    "eval_prompts": 2,
}


@dataclass(frozen=True)
class Run:
    """One recipe trained by one method."""

    reward: str
    method: str

    @property
    def name(self) -> str:
        return f"{self.reward}_{self.method}"

    def command(self, folder: Path, model: str, settings: Settings) -> list[str]:
        flags = settings | {
            "config": RECIPES[self.reward],
            "methods": self.method,
            "seeds": 1,
            "model_name_or_path": model,
            "output": str(folder / self.name),
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        return [sys.executable, "-m", "estune", "compare", *words]


RUNS = tuple(Run(reward, method) for reward in RECIPES for method in METHODS)


def main() -> int:
    folder, model, seconds, *rest = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception also stops the runs
    on_cpu = rest == ["--cpu"]
    runs = (RUNS[0], RUNS[3]) if on_cpu else RUNS  # each recipe and each method once
    learn(runs, Path(folder), model, float(seconds), ON_CPU if on_cpu else ON_GPU)
    print_figures({f"{run.name}_gain": "on a GPU only" for run in RUNS if run not in runs})
    failed = [run.name for run in runs if not report(run, Path(folder))]
    if failed:
        print(f"not even the base model was evaluated: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def learn(
    runs: Sequence[Run], folder: Path, model: str, seconds: float, settings: Settings
) -> None:
    """Start all runs at the same time, and stop those that have not ended after `seconds`."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    commands = [run.command(folder, model, settings) for run in runs]
    children = [subprocess.Popen(words, cwd=ROOT, stdout=sys.stderr) for words in commands]
    try:
        for child in children:
            wait(child, deadline - time.monotonic())
    finally:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + STOPPING
        for child in children:
            wait(child, deadline - time.monotonic())
            child.kill()


def wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until the child ends, at most `seconds`."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(max(0, seconds))


def report(run: Run, folder: Path) -> bool:
    """Print how far the run got; return False if it did not reach its first evaluation."""
    texts = [path.read_text() for path in folder.glob(f"{run.name}/*/points.jsonl")]
    points = [json.loads(line) for text in texts for line in text.splitlines()]
    if points:
        print_figures({f"{run.name}_{name}": value for name, value in reached(points).items()})
    return bool(points)


def reached(points: Sequence[dict[str, Any]]) -> dict[str, float | str]:
    """Return the figures of a run's last evaluation, compared with its first."""
    first = points[0]
    last = points[-1]
    found: dict[str, float | str] = {
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "steps": last["step"],
        "gain": last["train"]["reward"] - first["train"]["reward"],
    }
    for name in ("train", "held_out"):
        if name in last:
            found[f"{name}_before"] = first[name]["reward"]
            found[f"{name}_after"] = last[name]["reward"]
    return found


if __name__ == "__main__":
    sys.exit(main())
