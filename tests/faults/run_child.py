"""One run in its own process, for tests that kill it.

`python run_child.py MODEL OUTPUT STEPS [ENGINE [SETTINGS]]`, with SETTINGS as JSON.
"""

import json
import sys
import time

from estune import ESConfig, ESTrainer

ROWS = [
    {"prompt": f"what is {word}", "target": "x" * (5 + i)}
    for i, word in enumerate(["red", "blue", "cat", "dog"])
]


def short(completions, target, **columns):
    time.sleep(0.002)  # so that a kill finds it at work
    return [-abs(len(text) - len(wanted)) for text, wanted in zip(completions, target, strict=True)]


def main(model: str, output: str, steps: str, engine: str = "fake", settings: str = "{}") -> None:
    usual = {
        "output_dir": output,
        "engine": engine,
        "population_size": 4,
        "max_steps": int(steps),
        "save_steps": 3,
        "save_total_limit": 2,
        "sigma": 0.02,
        "max_completion_length": 8,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "num_completions_to_print": 0,
        "reward_workers": 0 if engine == "fake" else None,
    }
    ESTrainer(model, short, ESConfig(**usual | json.loads(settings)), ROWS[:2], ROWS[2:]).train(
        resume_from_checkpoint=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
