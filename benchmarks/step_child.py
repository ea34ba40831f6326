"""The measured process of `benchmarks.step`: a run of the trainer, or the model generating alone."""

import json
import sys
import tempfile
from typing import Any

from benchmarks.common import Peak, checkpoint, steps_between
from estune.config import ESConfig
from estune.tasks import get_task


def run(model: str, members: int, prompts: int, tokens: int) -> dict[str, Any]:
    """The metrics of the step that generation has the smaller part of."""
    from estune.engines.device import engine_dtype

    rows = get_task("conciseness").train(prompts)
    steps = steps_between(
        model, rows, population_size=members, max_steps=4, max_completion_length=tokens
    )
    worse = max(steps, key=lambda step: step["step_time"] / step["es/generate_seconds"])
    return worse | {"itemsize": engine_dtype(ESConfig()).itemsize}


def alone(model: str, members: int, prompts: int, tokens: int) -> dict[str, Any]:
    """The same generation, without θ."""
    from estune import engines
    from estune.theta.parameters import layout

    base = checkpoint(model)
    with tempfile.TemporaryDirectory() as output:
        engine: Any = engines.build(base, layout(base), ESConfig(output_dir=output))
        engine.generate(
            [row["prompt"] for row in get_task("conciseness").train(prompts)],
            max_completion_length=tokens,
        )
    return {}


def main() -> None:
    what, model, *size = sys.argv[1:]
    peak = Peak()
    figures = {"run": run, "alone": alone}[what](model, *map(int, size))
    print(json.dumps(figures | {"peak_bytes": peak.bytes}))


if __name__ == "__main__":
    main()
