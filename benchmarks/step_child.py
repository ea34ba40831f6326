"""The measured process of `benchmarks.step`: a run of the trainer, or the model generating alone."""

import contextlib
import io
import json
import math
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import checkpoint
from estune.config import ESConfig
from estune.tasks import get_task

MEMBERS, PROMPTS, TOKENS, STEPS = 16, 16, 64, 4


class Peak:
    """The highest anonymous memory of this process, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._running = True
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._running:
            status = Path("/proc/self/status").read_text()
            self.bytes = max(self.bytes, int(status.split("RssAnon:")[1].split()[0]) * 1024)
            time.sleep(0.01)


def run(model: str, output: str) -> dict[str, float]:
    """Four steps of the trainer as a user runs it: the first compiles, the last also saves, so the two between them count."""
    from estune import ESTrainer

    rows = get_task("conciseness").train(PROMPTS)
    config = ESConfig(
        output_dir=output, population_size=MEMBERS, max_steps=STEPS, max_completion_length=TOKENS, sigma=1e-4, disable_tqdm=True
    )
    trainer = ESTrainer(model, "conciseness_reward", config, rows)
    trainer.train()
    lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    step = max(lines[1:-1], key=lambda line: line["step_time"] / line["es/generate_seconds"])
    seconds = {name: step[f"es/{name}"] for name in ("generate_seconds", "load_seconds", "update_seconds")}
    base = trainer.model.checkpoint
    parameters = sum(math.prod(base.tensors[name].shape) for name in trainer.model.layout.in_model)
    ratio = step["step_time"] / step["es/generate_seconds"]
    return {"step_over_generation": ratio, "theta_bytes": 4 * parameters, "model_bytes": 2 * parameters} | seconds


def alone(model: str, output: str) -> dict[str, float]:
    """The same generation, without θ."""
    from estune import engines
    from estune.parameters import layout

    base = checkpoint(model)
    plan = layout(base)
    engine: Any = engines.build(base, plan, ESConfig(output_dir=output))
    engine.generate([row["prompt"] for row in get_task("conciseness").train(PROMPTS)], max_completion_length=TOKENS)
    return {"model_bytes": 2 * sum(math.prod(base.tensors[name].shape) for name in plan.in_model)}


def main() -> None:
    what, model = sys.argv[1:]
    peak = Peak()
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        figures = {"run": run, "alone": alone}[what](model, output)
    print(json.dumps(figures | {"peak_bytes": peak.bytes}))


if __name__ == "__main__":
    main()
