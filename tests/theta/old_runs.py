"""Runs that earlier versions wrote, and how to resume them.

`data/old_runs/format_1` and `format_2` hold three runs per journal format, stopped after step 4 of
6: `plain`; `found`, with `learning_rate: auto`, antithetic pairs and correlated noise; `decayed`,
with weight decay, a schedule and several checkpoints. All tune `base`. `digests.json` has θ's
digests before step 1 and after each of the six steps; both versions computed the same ones.
"""

import json
from pathlib import Path

from helpers import WORDS, short

from estune import ESConfig, ESTrainer

OLD_RUNS = Path(__file__).parent / "data" / "old_runs"
BASE = OLD_RUNS / "base"
FORMATS = (1, 2)
DIGESTS = json.loads((OLD_RUNS / "digests.json").read_text())
ROWS = [{"prompt": f"what is {word}", "target": "x" * (5 + i)} for i, word in enumerate(WORDS[:6])]

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
    config = ESConfig(
        output_dir=str(folder),
        engine="fake",
        population_size=4,
        max_steps=6,
        sigma=0.1,
        num_completions_to_print=0,
        reward_workers=0,
        **OLD_SETTINGS[name],
    )
    trainer = ESTrainer(str(BASE), short, config, ROWS[:2], ROWS[2:4])
    trainer.train(resume_from_checkpoint=True)
    return trainer
