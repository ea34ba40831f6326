"""`recipes/learning/diagnose.py` tells what is so: of a quadratic its dimension, of a run how far it went."""

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
from recipes.learning import diagnose  # noqa: E402

PAIRS = 4000


def step_of(fitness, drop: float) -> Step:
    """A step whose antithetic pairs earned `fitness` (2 · PAIRS,)."""
    control = {"alpha": 0.0, "tried": [], "gains": [], "predicted": 0.0, "drop": drop}
    return Step(1, [], [], list(fitness), 0.1, "iid", control=control, notes={"metrics": {}})


@pytest.mark.parametrize("curved", [3, 30])
def test_the_dimension_is_the_number_of_directions_that_share_the_curvature(curved):
    noise = np.random.default_rng(0).standard_normal((PAIRS, curved))
    even = -0.5 * (noise**2).sum(axis=1)
    row = diagnose._told(step_of(np.repeat(even, 2), -even.mean()), antithetic=True, raw=True)
    assert row["slope"] == 0
    assert row["dimension"] == pytest.approx(curved, rel=0.1)
    shaped = diagnose._told(step_of(np.repeat(even, 2), -even.mean()), antithetic=True, raw=False)
    assert shaped["dimension"] is None


def test_what_is_odd_is_all_slope_and_mere_noise_is_half_of_each():
    noise = np.random.default_rng(0).standard_normal(2 * PAIRS)
    line = np.column_stack([noise[:PAIRS], -noise[:PAIRS]]).ravel()
    assert diagnose._told(step_of(line, 0.0), antithetic=True, raw=True)["slope"] == 1
    assert diagnose._told(step_of(noise, 0.0), antithetic=True, raw=True)["slope"] == pytest.approx(
        0.5, abs=0.03
    )


@pytest.mark.parametrize("fitness", [[1.0, 2.0], [1.0, 2.0, None, 3.0], [None] * 4])
def test_a_single_pair_and_a_step_without_rewards_tell_no_slope(fitness):
    row = diagnose._told(step_of(fitness, 0.0), antithetic=True, raw=True)
    assert not {"slope", "dimension"} & set(row)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = [
        "--task",
        "conciseness",
        "--max_train_samples",
        "4",
        "--max_eval_samples",
        "4",
        "--max_completion_length",
        "6",
    ]
    words += [
        "--antithetic",
        "true",
        "--population_size",
        "4",
        "--sigma",
        "0.05",
        "--learning_rate",
        "auto",
        "--max_steps",
        "3",
    ]
    assert (
        main(["train", "--model_name_or_path", str(tiny), *words, "--output_dir", str(folder)]) == 0
    )
    return folder


def told(*words: str) -> tuple[list[str], list[dict[str, str]], str]:
    """The columns, the rows and the last line of what the recipe prints."""
    command = [sys.executable, "recipes/learning/diagnose.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    header, _, *rows, last = done.stdout.splitlines()
    columns = header.strip("| ").split(" | ")
    return (
        columns,
        [dict(zip(columns, row.strip("| ").split(" | "), strict=True)) for row in rows],
        last,
    )


@pytest.mark.slow
def test_a_run_is_told_step_by_step(run, tiny):
    columns, rows, last = told(str(run), "--kl", "1")
    assert columns == [name for name in diagnose.COLUMNS if name in columns]
    assert set(columns) >= {"promised", "gained", "slope", "distance", "KL"}
    base, tuned = (
        load_file(tiny / "model.safetensors"),
        load_file(run / "checkpoint-3" / "model.safetensors"),
    )
    moved, size = (
        np.concatenate([t.ravel() for t in tensors])
        for tensors in ([tuned[n] - base[n] for n in base], base.values())
    )
    assert float(rows[-1]["distance"]) == pytest.approx(
        np.sqrt((moved**2).mean() / (size**2).mean()), rel=0.03
    )
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
