"""One of several launched processes: train, evaluate, and print the result.

tests/workers/test_accelerate.py runs it.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil

from estune import ESConfig, ESTrainer

ROWS = [{"prompt": f"what is {word}"} for word in ("red", "blue", "cat", "dog", "sky", "x")]


def vowels(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(text.count, "aeiou"))) for text in completions]


def listening() -> list[str]:
    """Addresses at which this process listens."""
    return sorted(
        {
            c.laddr.ip
            for c in psutil.Process().net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
    )


def main() -> None:
    model, out, steps = sys.argv[1:4]
    settings = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    usual = {
        "output_dir": out,
        "dtype": "float32",
        "sigma": 0.02,
        "population_size": 8,
        "save_steps": 2,
        "max_completion_length": 8,
    }
    config = ESConfig(**usual | {"max_steps": int(steps), "workers": "accelerate"} | settings)
    trainer = ESTrainer(model, vowels, config, ROWS, ROWS[:2])
    trainer.train()
    figures = trainer.evaluate()
    trainer.save_model()
    again = ESTrainer(
        model,
        vowels,
        dataclasses.replace(config, output_dir=f"{out}/again", seed=7, max_steps=1),
        ROWS,
    )
    again.train()
    report = {
        "rank": os.environ.get("RANK", "0"),
        "digest": trainer.model.theta.digest(),
        "figures": bool(figures),
    }
    report |= {
        "listening": listening(),
        "processes": trainer.model.workers.status().alive,
        "shared": _mapped(),
        "again": again.model.theta.digest(),
    }
    Path(out, f"rank-{report['rank']}.json").write_text(json.dumps(report))


def _mapped() -> int:
    """How many regions of this process's memory are a shared θ."""
    return sum("estune-theta" in line for line in Path("/proc/self/maps").read_text().splitlines())


if __name__ == "__main__":
    main()
