"""Runs that were written in the first journal format, and how to resume them."""

from pathlib import Path

from helpers import WORDS, short

from estune import ESConfig, ESTrainer

OLD_RUNS = Path(__file__).parent / "data" / "runs_of_format_1"

OLD_ROWS = [
    {"prompt": f"what is {word}", "target": "x" * (5 + i)} for i, word in enumerate(WORDS[:6])
]

OLD_SETTINGS = {
    "plain": {"save_steps": 3},
    "found": {"learning_rate": "auto", "antithetic": True, "noise": "correlated", "save_steps": 3},
    "decayed": {
        "weight_decay": 0.5,
        "save_steps": 2,
        "lr_scheduler_type": "cosine",
        "target_parameters": ["mlp", "embed"],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "reward",
    },
}


def resume_old(folder, name):
    usual = {
        "engine": "fake",
        "population_size": 4,
        "max_steps": 6,
        "sigma": 0.1,
        "num_completions_to_print": 0,
        "reward_workers": 0,
    }
    config = ESConfig(output_dir=str(folder), **usual | OLD_SETTINGS[name])
    trainer = ESTrainer(str(OLD_RUNS / "base"), short, config, OLD_ROWS[:2], OLD_ROWS[2:4])
    trainer.train(resume_from_checkpoint=True)
    return trainer
