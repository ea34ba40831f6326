"""`recipes/learning/diagnose.py` finds a quadratic's dimension, and how far a run moved θ."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from safetensors.numpy import load_file

from estune.cli.main import main
from estune.theta.journal import Step

sys.path.append(str(ROOT))
from recipes.learning import diagnose

PAIRS = 4000


RAW = {"antithetic": True}
SHAPED = {"antithetic": True, "prompt_shaping": "standardize"}


def step_of(fitness, drop: float) -> Step:
    """A step whose antithetic pairs have this fitness, (2 · PAIRS,)."""
    control = {"alpha": 0.0, "tried": [], "gains": [], "predicted": 0.0, "drop": drop}
    return Step(1, [], [], list(fitness), 0.1, "iid", control=control, notes={"metrics": {}})


@pytest.mark.parametrize("curved", [3, 30])
def test_the_dimension_is_the_number_of_directions_that_share_the_curvature(curved):
    noise = np.random.default_rng(0).standard_normal((PAIRS, curved))
    even = -0.5 * (noise**2).sum(axis=1)
    step = step_of(np.repeat(even, 2), -even.mean())
    row = diagnose._from_journal(step, RAW)
    assert row["slope"] == 0
    assert row["dimension"] == pytest.approx(curved, rel=0.1)
    assert "dimension" not in diagnose._from_journal(step, SHAPED)


def test_an_odd_function_is_all_slope_and_noise_is_half_of_it():
    noise = np.random.default_rng(0).standard_normal(2 * PAIRS)
    line = np.column_stack([noise[:PAIRS], -noise[:PAIRS]]).ravel()
    assert diagnose._from_journal(step_of(line, 0.0), RAW)["slope"] == 1
    slope = diagnose._from_journal(step_of(noise, 0.0), RAW)["slope"]
    assert slope == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("fitness", [[1.0, 2.0], [1.0, 2.0, None, 3.0], [None] * 4])
def test_a_single_pair_and_a_step_without_fitness_have_no_slope(fitness):
    row = diagnose._from_journal(step_of(fitness, 0.0), RAW)
    assert not {"slope", "dimension"} & set(row)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = {
        "model_name_or_path": str(tiny),
        "output_dir": str(folder),
        "task": "conciseness",
        "max_train_samples": 4,
        "max_eval_samples": 4,
        "max_completion_length": 6,
        "antithetic": "true",
        "population_size": 4,
        "sigma": 0.05,
        "learning_rate": "auto",
        "max_steps": 2,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    assert main(["train", *flags]) == 0
    return folder


def diagnosed(*words: str) -> tuple[list[str], list[dict[str, str]], str]:
    """Return the columns, the rows and the last line that the recipe prints."""
    command = [sys.executable, "recipes/learning/diagnose.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    header, _, *lines, last = done.stdout.splitlines()
    columns, *rows = (line.strip("| ").split(" | ") for line in (header, *lines))
    return columns, [dict(zip(columns, row, strict=True)) for row in rows], last


@pytest.mark.slow
def test_a_run_is_shown_step_by_step(run, tiny):
    columns, rows, last = diagnosed(str(run), "--kl", "1")
    assert columns == [name for name in diagnose.COLUMNS if name in columns]
    assert set(columns) >= {"promised", "gained", "slope", "distance", "KL"}
    base = load_file(tiny / "model.safetensors")
    tuned = load_file(run / "checkpoint-2" / "model.safetensors")
    moved = np.concatenate([(tuned[name] - base[name]).ravel() for name in base])
    size = np.concatenate([tensor.ravel() for tensor in base.values()])
    distance = np.sqrt((moved**2).mean() / (size**2).mean())
    assert float(rows[-1]["distance"]) == pytest.approx(distance, rel=0.03)
    assert float(rows[-1]["KL"]) != 0
    assert re.match(r"over all steps: gained of what was promised: -?\d", last)
    assert not list(run.glob("tmp*"))


def test_a_folder_without_a_run_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "recipes/learning/diagnose.py", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the folder of a run?" in done.stderr
