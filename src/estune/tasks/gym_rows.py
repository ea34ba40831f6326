"""The rows of reasoning-gym's datasets: always the same ones, and none of them in both splits.

Some datasets iterate over sets of strings or use the process's random generator, so their rows
differ between processes. Therefore this runs as a program with PYTHONHASHSEED=0:

  PYTHONHASHSEED=0 python -m estune.tasks.gym_rows sudoku train 200
"""

import contextlib
import hashlib
import itertools
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from estune.common.types import Row
from estune.errors import DataError
from estune.tasks.gym_entries import encode

SEEDS = {"train": 1_000_000, "test": 2_000_000_000}  # numpy takes no more than 32 bits
CHUNK = 500  # entries per dataset object; many objects make an endless stream
PATIENCE = 200  # most entries in succession that belong to the other split


def gym_rows(name: str, split: str, count: int) -> list[Row]:
    """Return the first `count` rows of `prompt` (messages), `dataset` and `entry` (JSON).

    A question's hash decides its split, so no question is in both, however many rows are used.

    Raises:
        DataError: the dataset has too few different questions.
    """
    return list(itertools.islice(_rows(name, split), count))


def _rows(name: str, split: str) -> Iterator[Row]:
    from reasoning_gym.utils import SYSTEM_PROMPTS

    waiting = given = 0
    for entry in _entries(name, SEEDS[split]):
        if _split_of(entry["question"]) != split or _is_unsolved(entry):
            waiting += 1
            if waiting > PATIENCE:
                raise DataError(
                    f"reasoning_gym:{name}: its {split} split ends after {given} rows; "
                    "ask for fewer"
                )
            continue
        waiting, given = 0, given + 1
        prompt = [
            {"role": "system", "content": SYSTEM_PROMPTS["default"]},
            {"role": "user", "content": entry["question"]},
        ]
        yield {"prompt": prompt, "dataset": name, "entry": encode(entry)}


def _entries(name: str, seed: int) -> Iterator[dict[str, Any]]:
    import reasoning_gym

    for start in itertools.count(seed, CHUNK):
        dataset = reasoning_gym.create_dataset(name, seed=start, size=CHUNK)
        for index in range(CHUNK):
            random.seed(start + index)
            np.random.seed(start + index)
            yield dataset[index]


def _split_of(question: str) -> str:
    return "test" if hashlib.blake2b(question.encode()).digest()[0] % 2 else "train"


def _is_unsolved(entry: dict[str, Any]) -> bool:
    # The dataset could not solve some integrals: its own answer repeats the question.
    return "Integral(" in str(entry["answer"])


def _main(name: str, split: str, count: str) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # keep a library's prints out of the rows
            rows = gym_rows(name, split, int(count))
    except DataError as error:
        sys.exit(str(error))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    _main(*sys.argv[1:])
