"""Train SmolLM2-135M for a few steps, measure the speed, and replay the journal on the CPU.

python -m benchmarks.gpu_all.model FOLDER MODEL [--cpu]

The run is written to FOLDER. If FOLDER has an unfinished run, it is resumed.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, SIGMA, middle_steps
from benchmarks.gpu_all import print_figures
from estune import ESConfig, ESTrainer
from estune.tasks import get_task

ON_GPU = {
    "population_size": 4,
    "batch_size": 64,
    "max_steps": 10,
    "max_completion_length": 32,
    "device": "cuda",
}
ON_CPU = {
    "population_size": 2,
    "batch_size": 4,
    "max_steps": 3,
    "max_completion_length": 8,
    "device": "cpu",
}
PARTS = ("es/generate_seconds", "es/load_seconds", "es/update_seconds")


def main() -> int:
    name, model, *rest = sys.argv[1:]
    folder = Path(name)
    settings: dict[str, Any] = ON_CPU if rest == ["--cpu"] else ON_GPU
    steps = settings["max_steps"]
    print_figures({"theta_on": train(folder, model, settings)})
    print_figures(speed(folder))
    line = (folder / "journal.jsonl").read_text().splitlines()[steps]
    of_run = json.loads(line)["digest"]
    of_replay = replay(folder, model, steps)
    print_figures({"digest_equal": of_run == of_replay})
    print_figures({"digest_of_the_run": of_run, "digest_of_the_replay": of_replay})
    return 0


def train(folder: Path, model: str, settings: dict[str, Any]) -> str:
    """Train, and return the device that held θ."""
    task = get_task("conciseness")
    config = ESConfig(
        output_dir=str(folder),
        save_steps=settings["max_steps"],
        sigma=SIGMA,
        learning_rate=0.007,
        disable_tqdm=True,
        resume_from_checkpoint=True,
        **settings,
    )
    with redirect_stdout(sys.stderr):
        trainer = ESTrainer(model, task.reward_funcs, config, task.train(settings["batch_size"]))
        trainer.train()
    return trainer.model.placement.device


def speed(folder: Path) -> dict[str, float | str]:
    """Return tokens per second, and the parts of a step's time."""
    steps = middle_steps(folder)
    seconds = {name: sum(step[name] for step in steps) for name in ("step_time", *PARTS)}
    tokens = sum(step["es/tokens_per_second"] for step in steps) / len(steps)
    figures: dict[str, float | str] = {
        "tokens_per_second": tokens,
        "step_over_generation": seconds["step_time"] / seconds["es/generate_seconds"],
    }
    for name in PARTS:
        part = name.removeprefix("es/").removesuffix("_seconds")
        figures[f"{part}_of_step"] = seconds[name] / seconds["step_time"]
    return figures


def replay(folder: Path, model: str, steps: int) -> str:
    """Return θ's digest from `estune replay`, run without a GPU."""
    estune = [sys.executable, "-m", "estune"]
    with tempfile.TemporaryDirectory() as scratch:
        what = ["replay", str(folder), "--step", str(steps), "--model", model]
        done = subprocess.run(
            [*estune, *what, "--output", f"{scratch}/step"],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found = re.search(r"digest is ([0-9a-f]{32})", done.stdout)
    return found[1] if found else done.stdout


if __name__ == "__main__":
    sys.exit(main())
