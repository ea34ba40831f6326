"""Download the data of the math recipe: MATH's levels 3 to 5 to train on, MATH-500 to evaluate.

python recipes/math/data.py     # needs the hub; writes train.jsonl and test.jsonl to runs/data/math
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HUB = "nlile/hendrycks-MATH-benchmark"  # train: 12,000 problems; test: MATH-500
FOLDER = Path("runs/data/math")
# the system message that Qwen2.5-Math was trained with
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


def write(
    folder: Path, train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]
) -> None:
    """Write both splits as rows of `prompt` and `answer`; of `train`, only levels 3 to 5."""
    folder.mkdir(parents=True, exist_ok=True)
    hard = [problem for problem in train if problem["level"] >= 3]
    for split, problems in (("train", hard), ("test", test)):
        lines = [json.dumps(_row(problem)) + "\n" for problem in problems]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _row(problem: Mapping[str, Any]) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": problem["problem"]},
    ]
    return {"prompt": messages, "answer": problem["answer"]}


if __name__ == "__main__":
    from datasets import load_dataset

    write(FOLDER, load_dataset(HUB, split="train"), load_dataset(HUB, split="test"))
