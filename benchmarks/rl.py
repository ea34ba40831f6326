"""A step of ES beside one of TRL's GRPO: the same model and Countdown prompts, 16 completions of at most 32 new tokens.

    python -m benchmarks.rl [--json]

    es_over_grpo_memory                peak memory of a run of estune's trainer in fp32 ÷ of a run of TRL's GRPOTrainer; at most 0.2
    es_over_grpo_time                  seconds of a step of ES ÷ its members, of which each answers 16 prompts ÷ seconds of a step of GRPO
    es_default_over_grpo_memory        the first with estune's default dtype, which is bf16 where the processor computes in it
    es_over_checkpointed_grpo_memory   the first with GRPO that computes activations again in its backward pass, TRL's default

GRPO is set up as by `estune compare`: fp32, AdamW, eight completions a prompt, all 16 in one backward pass, with a KL term (beta
0.001) and so with a reference model. Each run has a process of its own with its libraries, in which rewards are scored too.
Memory is what cannot be given back, θ counted once. What GRPO takes for activations grows with the length of prompts and answers,
what ES takes hardly does. Time is a ratio of equal numbers of completions: a step of ES has N members, 30 by default, and takes N
times as long as one. Of three steps the one between the first and the last counts.
"""

import json
import sys
import tempfile
import time
from typing import Any

from benchmarks.common import Peak, characters, checkpoint, child, options, show, steps_between

MEMBERS = 2


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        what, model, *given = sys.argv[2:]
        peak = Peak()
        figures = RUNS[what](model, *map(int, given))
        print(json.dumps(figures | {"peak_GB": peak.bytes / 1e9}))
        return
    asked = options(__doc__)
    size = ("4", "8") if asked.quick else ("16", "32")
    found = {what: child("benchmarks.rl", "--child", what, asked.model, *size) for what in RUNS}
    es, grpo = found["es"], found["grpo"]
    show(
        {
            "es_over_grpo_memory": es["peak_GB"] / grpo["peak_GB"],
            "es_over_grpo_time": es["seconds"] / grpo["seconds"],
            "es_default_over_grpo_memory": found["es_default"]["peak_GB"] / grpo["peak_GB"],
            "es_over_checkpointed_grpo_memory": es["peak_GB"]
            / found["grpo_checkpointed"]["peak_GB"],
        }
        | {
            f"{what}_{name}": value
            for what, figures in found.items()
            for name, value in figures.items()
        },
        asked.json,
    )


def es(model: str, completions: int, tokens: int, dtype: str = "float32") -> dict[str, float]:
    from estune.tasks import get_task

    rows = get_task("countdown").train(completions)
    size = {"population_size": MEMBERS, "max_steps": 3, "max_completion_length": tokens}
    (step,) = steps_between(model, rows, characters, dtype=dtype, reward_workers=0, **size)
    return {"seconds": step["step_time"] / MEMBERS, "tokens": step["completions/mean_length"]}


def es_default(model: str, completions: int, tokens: int) -> dict[str, float]:
    return es(model, completions, tokens, "auto")


def grpo(model: str, completions: int, tokens: int, checkpointed: bool = False) -> dict[str, float]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from estune.evaluation.compare.methods import METHODS
    from estune.tasks import get_task

    data = Dataset.from_list(get_task("countdown").train(completions))
    with tempfile.TemporaryDirectory() as output:
        settings = dict(METHODS["grpo"].settings) | {
            "output_dir": output,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": checkpointed,
            "num_generations": completions // 2,
            "per_device_train_batch_size": completions,
            "max_completion_length": tokens,
            "max_steps": 3,
            "learning_rate": 1e-6,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        clock = _clock()
        folder = str(checkpoint(model).folder)
        trainer = GRPOTrainer(folder, characters, GRPOConfig(**settings), data, callbacks=[clock])
        trainer.train()
    return {
        "seconds": clock.steps[1],
        "tokens": trainer.state.log_history[1]["completions/mean_length"],
    }


def grpo_checkpointed(model: str, completions: int, tokens: int) -> dict[str, float]:
    return grpo(model, completions, tokens, checkpointed=True)


def _clock() -> Any:
    """A callback that keeps the seconds of each step in `steps`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: list[float] = []

        def on_step_begin(self, *args: Any, **details: Any) -> None:
            self._started = time.perf_counter()

        def on_step_end(self, *args: Any, **details: Any) -> None:
            self.steps.append(time.perf_counter() - self._started)

    return Clock()


RUNS = {"es": es, "es_default": es_default, "grpo": grpo, "grpo_checkpointed": grpo_checkpointed}

if __name__ == "__main__":
    main()
