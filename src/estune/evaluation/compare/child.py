"""Execute one run of a comparison in its own process: `estune compare --run FOLDER`."""

import contextlib
import ctypes
import dataclasses
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from estune.common.durable import write_text
from estune.evaluation.compare.runs import ComparisonRun, is_es, load
from estune.monitor.console import quieten_libraries
from estune.run.inputs import data_and_rewards

_PR_SET_PDEATHSIG = 1


def execute(folder: Path) -> None:
    """Execute the run that `run.json` in `folder` describes, and write `result.json`.

    Raises:
        InputError: the model, the data, a reward function or a setting cannot be used.
    """
    _end_with_parent()
    run = read(folder)
    quieten_libraries()
    found = _train(run, folder) | {"peak_bytes": peak_memory()}
    about = {
        "method": run.method,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "rl": run.rl,
    }
    write_text(folder / "result.json", json.dumps(about | found, indent=1) + "\n")


def read(folder: Path) -> ComparisonRun:
    """Read the run from `run.json` in `folder`."""
    return load(json.loads((folder / "run.json").read_text(encoding="utf-8")))


def prepare(run: ComparisonRun) -> None:
    """Download or convert the model before the first run, whose time and memory it would add to."""
    from estune.run.base_model import base_model

    config = run.config()
    base_model(config.model_name_or_path or "", config, None)


def peak_memory() -> int:
    """Return the most resident memory that this process had, in bytes.

    Linux's getrusage would include memory that the parent had when it started this process, so
    VmHWM is read where there is a /proc.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _train(run: ComparisonRun, folder: Path) -> dict[str, Any]:
    config = run.config()
    evaluating = dataclasses.replace(config, eval_strategy="steps") if run.evaluates else config
    rows, held_out, rewards = data_and_rewards(evaluating)
    if is_es(run):
        from estune.evaluation.compare import es

        return es.train(run, folder, rows, held_out, rewards)
    from estune.evaluation.compare import rl

    return rl.train(run, folder, rows, held_out, rewards)


def _end_with_parent() -> None:
    """Let Linux send this process SIGTERM when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
