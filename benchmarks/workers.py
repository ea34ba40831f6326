"""What the seams around an engine cost: the same steps on one Ray worker as in this process, on the real model.

    python -m benchmarks.workers [--json]

    ray_over_local    wall time of a step on one Ray worker ÷ the same in the trainer's process (N = 8, 16 prompts, 32
                      new tokens); at most 1.03

Of four steps the first also compiles and the last saves, so the mean of the two between counts. Both runs are made twice
and in turn, since a machine's speed drifts, and the better of each is taken.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import child, options, show
from estune.config import ESConfig

MEMBERS, PROMPTS, TOKENS, STEPS, TIMES = 8, 16, 32, 4, 2


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_step(*sys.argv[2:])))
        return
    asked = options(__doc__)
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    for _ in range(TIMES):
        for workers, found in seconds.items():
            found.append(child("benchmarks.workers", "--child", workers, asked.model))
    local, ray = min(seconds["local"]), min(seconds["ray"])
    show({"ray_over_local": ray / local, "local_step_seconds": local, "ray_step_seconds": ray}, asked.json)


def _step(workers: Any, model: str) -> float:
    """Seconds of a step of the trainer."""
    from estune import ESTrainer
    from estune.tasks import get_task

    rows = get_task("conciseness").train(PROMPTS)
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        config = ESConfig(
            output_dir=output,
            population_size=MEMBERS,
            max_steps=STEPS,
            max_completion_length=TOKENS,
            sigma=1e-4,
            disable_tqdm=True,
            workers=workers,
        )
        ESTrainer(model, "conciseness_reward", config, rows).train()
        lines = [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]
    between = [line["step_time"] for line in lines[1:-1]]
    return sum(between) / len(between)


if __name__ == "__main__":
    main()
