"""Compare a step of ES with one of TRL's GRPO: 16 completions of at most 32 tokens, Countdown.

    python -m benchmarks.rl [--json]

    es_over_grpo_memory                peak memory of estune in fp32 ÷ of TRL's GRPOTrainer; at most
                                       0.2
    es_over_grpo_time                  time of a member, which completes 16 prompts ÷ of a GRPO step
    es_default_over_grpo_memory        the first, with estune's default dtype: bf16 where the
                                       processor computes in it
    es_over_checkpointed_grpo_memory   the first, with gradient checkpointing in GRPO, TRL's default

GRPO is set up as in `estune compare`: fp32, AdamW, eight completions per prompt, all 16 in one
backward pass, and a KL term (beta 0.001), which needs a reference model. Each run has its own
process, which also scores rewards. Memory is anonymous and shared memory. GRPO's activations grow
with the length of prompts and completions; ES has hardly any. Time compares equal numbers of
completions: a step of ES has N members, 30 by default, and takes N times as long as one. The second
of three steps counts.
"""

import tempfile
import time
from typing import Any

from benchmarks.common import (
    Figures,
    Peak,
    characters,
    checkpoint,
    child,
    options,
    ran_as_child,
    show,
    steps_between,
)

MEMBERS = 2


def main() -> None:
    runs = {
        "es": es,
        "es_default": es_default,
        "grpo": grpo,
        "grpo_checkpointed": grpo_checkpointed,
    }
    if ran_as_child(runs):
        return
    given = options(__doc__)
    size = ("4", "8") if given.quick else ("16", "32")
    found = {name: child("benchmarks.rl", "--child", name, given.model, *size) for name in runs}
    memory = {name: run["peak_GB"] for name, run in found.items()}
    figures = {
        "es_over_grpo_memory": memory["es"] / memory["grpo"],
        "es_over_grpo_time": found["es"]["seconds"] / found["grpo"]["seconds"],
        "es_default_over_grpo_memory": memory["es_default"] / memory["grpo"],
        "es_over_checkpointed_grpo_memory": memory["es"] / memory["grpo_checkpointed"],
    }
    for name, run in found.items():
        figures |= {f"{name}_{figure}": value for figure, value in run.items()}
    show(figures, given.json)


def es(model: str, completions: str, tokens: str, dtype: str = "float32") -> Figures:
    from estune.tasks import get_task

    peak = Peak()
    (step,) = steps_between(
        model,
        get_task("countdown").train(int(completions)),
        characters,
        population_size=MEMBERS,
        max_steps=3,
        max_completion_length=int(tokens),
        dtype=dtype,
        reward_workers=0,
    )
    return {
        "seconds": step["step_time"] / MEMBERS,
        "tokens": step["completions/mean_length"],
        "peak_GB": peak.bytes / 1e9,
    }


def es_default(model: str, completions: str, tokens: str) -> Figures:
    return es(model, completions, tokens, "auto")


def grpo(model: str, completions: str, tokens: str, checkpointed: bool = False) -> Figures:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from estune.evaluation.compare.methods import METHODS
    from estune.tasks import get_task

    peak = Peak()
    count = int(completions)
    data = Dataset.from_list(get_task("countdown").train(count))
    folder = str(checkpoint(model).folder)
    clock = step_clock()
    with tempfile.TemporaryDirectory() as output:
        settings = dict(METHODS["grpo"].settings) | {
            "output_dir": output,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": checkpointed,
            "num_generations": count // 2,
            "per_device_train_batch_size": count,
            "max_completion_length": int(tokens),
            "max_steps": 3,
            "learning_rate": 1e-6,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        trainer = GRPOTrainer(folder, characters, GRPOConfig(**settings), data, callbacks=[clock])
        trainer.train()
    second = trainer.state.log_history[1]
    return {
        "seconds": clock.steps[1],
        "tokens": second["completions/mean_length"],
        "peak_GB": peak.bytes / 1e9,
    }


def grpo_checkpointed(model: str, completions: str, tokens: str) -> Figures:
    return grpo(model, completions, tokens, checkpointed=True)


def step_clock() -> Any:
    """Return a callback that keeps the seconds of each step in `steps`."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: list[float] = []
            self._started = 0.0

        def on_step_begin(self, *args: Any, **details: Any) -> None:
            self._started = time.perf_counter()

        def on_step_end(self, *args: Any, **details: Any) -> None:
            self.steps.append(time.perf_counter() - self._started)

    return StepClock()


if __name__ == "__main__":
    main()
