"""What the benchmarks share: the real model, the best of several timings, and how a result is printed."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from estune.checkpoint import Checkpoint, open_checkpoint, resolve

MODEL = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def options(description: str | None) -> argparse.Namespace:
    """Parse --model and --json."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="folder, .gguf or hub id [models/SmolLM2…, from make model]")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return parser.parse_args()


def checkpoint(model: str) -> Checkpoint:
    return open_checkpoint(resolve(model))


def best_of(times: int, function: Callable[[], object]) -> float:
    """Seconds of the fastest of `times` calls, after one that isn't counted."""
    function()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def child(module: str, *arguments: str) -> Any:
    """What `python -m module arguments` prints last, as JSON: measured in a process of its own, whose memory is its own."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(figures: dict[str, float], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for name, value in figures.items():
        print(f"{name:28} {value:.4g}")
