"""The data of the math recipe: MATH's problems of levels 3 to 5 to learn from, and the 500 of MATH-500 held out.

python recipes/math/data.py     # needs the hub; writes train.jsonl and test.jsonl to runs/data/math
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HUB = "nlile/hendrycks-MATH-benchmark"  # the 12,000 problems that are not in MATH-500, and MATH-500
FOLDER = Path("runs/data/math")
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."  # what Qwen2.5-Math was trained with


def write(
    folder: Path, train: Iterable[Mapping[str, Any]], test: Iterable[Mapping[str, Any]]
) -> None:
    """Write both splits as rows of `prompt` and `answer`; of `train` only the levels 3 to 5."""
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
